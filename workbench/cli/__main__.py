"""`python -m workbench.cli`: the command `workbench`, where no script of that name is installed."""

from workbench.cli.main import main

main()
