"""`python -m optim4rl`."""

from optim4rl.cli.main import main

main()
