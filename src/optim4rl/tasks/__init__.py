"""Tasks: environments, agent networks and inner learners."""

from optim4rl.tasks.a2c import A2CConfig as A2CConfig
from optim4rl.tasks.defaults import default_config as default_config
from optim4rl.tasks.inputs import MapOrder as MapOrder
from optim4rl.tasks.ppo import PPOConfig as PPOConfig
from optim4rl.tasks.task import (
    Task as Task,
    TaskConfig as TaskConfig,
    make_task as make_task,
    task_from_environment as task_from_environment,
)
