"""`python -m circuitome`: the command line."""

from circuitome.cli.main import main

main()
