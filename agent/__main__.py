"""`python -m agent` is the command `vouchd`."""

from agent.cli import main

main()
