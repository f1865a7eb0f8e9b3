"""The words that a command was given, so that a manifest can say what makes its result again, and pieces can repeat it.

A command of the class `Remembered` keeps its words in its context; nothing here or below reads `sys.argv`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

_KEY = "workbench.cli.words"


class Remembered(TyperCommand):
    """A command whose function can ask for its words, by an argument `context: typer.Context`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps the words, before they are parsed."""
        ctx.meta[_KEY] = tuple(args)
        return super().parse_args(ctx, args)


def words_given(context: typer.Context) -> list[str]:
    """The whole command, word by word."""
    return ["workbench", str(context.info_name), *context.meta[_KEY]]


def words_without(
    context: typer.Context, leave_out: Collection[str], *, changed: Mapping[str, str] | None = None
) -> list[str]:
    """The command's name and words without some parameters; arguments first, options in the order they were given in.

    Args:
        context: Of a `Remembered` command.
        leave_out: Parameters, by the names that the command's function gives them.
        changed: Other values, by parameter.
    """
    values, _, order = context.command.make_parser(context).parse_args(list(context.meta[_KEY]))
    given = sorted(dict.fromkeys(order), key=lambda parameter: parameter.param_type_name != "argument")
    words = [str(context.info_name)]
    for parameter in given:
        name = str(parameter.name)
        if name not in leave_out:
            words += _words_of(parameter, (changed or {}).get(name, values[name]))
    return words


def _words_of(parameter: Any, value: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [value]
    if getattr(parameter, "is_flag", False):
        return [parameter.opts[0] if value else parameter.secondary_opts[0]]
    return [word for each in (value if isinstance(value, list) else [value]) for word in (parameter.opts[0], each)]
