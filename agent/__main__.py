"""`python -m agent` is the command `vouchd`."""

from agent.cli.main import main

main()
