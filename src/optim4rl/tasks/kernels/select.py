"""Choose the implementation of the convolutional torso: the fastest that can run it."""

from optim4rl.tasks.inputs import Inputs, SparseInputs
from optim4rl.tasks.kernels import native
from optim4rl.tasks.kernels.xla import XlaConvLayers


def choose(inputs: Inputs) -> native.NativeConvLayers | XlaConvLayers:
    """Return the layers that read these inputs on this machine."""
    if isinstance(inputs, SparseInputs) and native.LIBRARY.refusal() is None:
        return native.NativeConvLayers(inputs)
    return XlaConvLayers(inputs)
