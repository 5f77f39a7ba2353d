"""Mistakes in a command line, told as all others are: what is wrong, and what to do."""

import click

from e2e_runner.errors import UsageError
from e2e_runner.settings import SETTINGS, Scope, Setting

_WHERE = {
    Scope.METADATA: ("a script's metadata", "an override"),
    Scope.CONFIG: ("the configuration",),
}


def explain(error: click.UsageError) -> UsageError:
    """Put what click found wrong into our words."""
    command = error.ctx.command_path if error.ctx is not None else ""
    help_ = f"see `{command} --help`" if command else ""
    if not isinstance(error, click.NoSuchOption):
        return UsageError(_message(error), remedy=help_)
    named = error.option_name.lstrip("-")
    key = next((each for each in SETTINGS if each.name == named and not each.flags), None)
    if key is not None:
        return UsageError(
            f"{error.option_name} is no option: `{key.name}` is a key of [tool.e2e-run]",
            remedy=_remedy(key),
        )
    meant = " or ".join(error.possibilities or ())
    return UsageError(
        f"{error.option_name} is no option of {command or 'e2e-run'}",
        remedy=f"did you mean {meant}? Else {help_}" if meant else help_,
    )


def _remedy(key: Setting) -> str:
    places = [each for scope, named in _WHERE.items() if scope in key.scopes for each in named]
    *others, last = places
    listed = f"{', '.join(others)} or {last}" if others else last
    variable = f", or set {key.variable}" if Scope.ENVIRONMENT in key.scopes else ""
    return f"write `{key.name} = ...` in {listed}{variable}"


def _message(error: click.UsageError) -> str:
    """Give what is wrong as a clause, without a full stop."""
    if isinstance(error, click.MissingParameter) or not isinstance(error, click.BadParameter):
        return error.format_message().rstrip(".")
    parameter = error.param
    name = "" if parameter is None else max(parameter.opts, key=len)
    if isinstance(parameter, click.Argument):
        name = parameter.human_readable_name.strip("[].")
    kind = None if parameter is None else parameter.type
    what = error.message.rstrip(".")
    if isinstance(kind, click.IntRange) and " is not " in what:
        upper = "" if kind.max is None else f" to {kind.max}"
        accepted = f"from {kind.min}{upper}" if upper else f"of at least {kind.min}"
        what = (
            f"{what.partition(' is not ')[0]} is not accepted; accepted: a whole number {accepted}"
        )
    return f"{name}: {what}"
