"""The `workbench` command, the top floor: it alone knows the engine, the analyses and the app.

Every command is a thin layer over a public function of the same name; errors of the user's making are one sentence.
"""

import sys
from importlib import import_module
from typing import Any

import typer
from rich.markup import escape

from workbench.cli import ending
from workbench.cli.console import error_console

COMMANDS = ("record", "inspect", "profile", "programme", "serve_bench", "analyze", "costs", "demo", "app")
"""Modules beside this one that add commands, each with a `register`, in the order of the help."""

_RESUMES = "What was written before is whole: run the same command again, it resumes where it stopped."
STAYS = {
    "record": _RESUMES,
    "import": _RESUMES,
    "demo": _RESUMES,
    "programme": "The pieces that were done stay: run the same command again, it resumes with the next.",
    "analyze": "Analyses that were done are whole in --out; of the others nothing was written.",
    "profile": "Nothing of the measurement was written.",
    "serve-bench": "Nothing of the measurement was written.",
}
"""What an interrupted command leaves behind, by name."""


def main() -> None:
    """Runs the command; whatever ends it is said in one sentence (`ending.py`)."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    ending.run(_command, say=_say_error, stays=STAYS.get(name, ""))


def command_line() -> typer.Typer:
    """The command line with all commands."""
    app = typer.Typer(
        name="workbench",
        help="Record what a Mixture-of-Experts model does, prove it, analyse it, print it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module in COMMANDS:
        import_module(f"workbench.cli.{module}").register(app)
    return app


def _command() -> None:
    """Runs the command that was asked for."""
    command = typer.main.get_command(command_line())
    for each in (command, *getattr(command, "commands", {}).values()):
        _keep_brackets(each)
    command()


def _keep_brackets(command: Any) -> None:
    """Escapes what rich would take for markup in a command's help: `[auth]` is a word."""
    command.help = escape(command.help or "")
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = escape(parameter.help)


def _say_error(sentence: str) -> None:
    error_console.print(f"workbench: {sentence}", style="red", highlight=False)
