"""The options of ``run`` and ``list``, made from the table of settings.

An option that is not given has the value None (or an empty tuple), so that weaker sources can speak;
its text is checked by `e2e_runner.config.resolve`, together with all other sources.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from e2e_runner.errors import SetupError
from e2e_runner.kinds import FLAG
from e2e_runner.settings import SETTINGS, Scope, Setting

if TYPE_CHECKING:
    from e2e_runner.config import Resolved
    from e2e_runner.model import RunSettings

F = TypeVar("F", bound=Callable[..., Any])

# What changes the picture that `list` gives.
_LISTED = frozenset(
    {"config", "env", "exclude", "grace", "keyword", "only", "python", "skip", "skip-websocket"}
    | {"jobs", "last-failed", "network", "shard", "timeout", "timings", "verbose"}
)
# The order of --help: what is used most comes first.
_FIRST = ("timeout", "grace", "keyword", "only", "skip", "skip-websocket", "exclude")


def take_environment() -> dict[str, str]:
    """Copy the caller's environment, and take from our own what leads to the application's databases.

    A driver looks there by itself, wherever the address of a server leaves something open.
    """
    from e2e_runner.addresses import APPLICATION_VARIABLES

    copy = dict(os.environ)
    for name in APPLICATION_VARIABLES:
        os.environ.pop(name, None)
    return copy


def run_options(command: F) -> F:
    """Add the PATH arguments and every option to a command."""
    return _add(command, [setting for setting in SETTINGS if Scope.FLAG in setting.scopes])


def list_options(command: F) -> F:
    """Add the PATH arguments and the options that decide what would run and how."""
    return _add(
        command,
        [
            setting
            for setting in SETTINGS
            if Scope.FLAG in setting.scopes and setting.name in _LISTED
        ],
    )


def resolve_given(flags: Mapping[str, object], paths: Sequence[str]) -> "Resolved":
    """Resolve what a command was given in the surroundings of this process.

    Raises what `e2e_runner.config.resolve` raises.
    """
    from e2e_runner.config import resolve

    try:
        cwd = Path.cwd()
    except OSError as error:
        raise SetupError(
            f"The working directory cannot be used: {error.strerror}",
            remedy="change to a folder that exists",
        ) from error
    resolved = resolve(flags, paths, os.environ, cwd)
    idle = without_effect(flags, resolved.run)
    return replace(resolved, warnings=(*resolved.warnings, *idle)) if idle else resolved


def without_effect(flags: Mapping[str, object], run: "RunSettings") -> tuple[str, ...]:
    """Say which of the flags do nothing beside the others.

    What the configuration or a variable says is for other commands too, and is not told of.
    """

    def given(name: str) -> bool:
        return flags.get(name) is not None

    found = []
    if given("timings") and run.shard is None:
        found.append("--timings has no effect without --shard")
    if given("retries") and given("repeat") and run.repeat > 1:
        found.append("--retries has no effect with --repeat: an example passes when all of them do")
    return tuple(found)


def _add(command: F, settings: Sequence[Setting]) -> F:
    def position(setting: Setting) -> int:
        return _FIRST.index(setting.name) if setting.name in _FIRST else len(_FIRST)

    # Decorators apply from the inside out.
    for setting in sorted(settings, key=position)[::-1]:
        command = _option(setting)(command)
    return click.argument("paths", nargs=-1, metavar="[PATH]...")(command)


def _option(setting: Setting) -> Callable[[F], F]:
    default = setting.default_words
    words = f"{setting.help}  [default: {default}]" if default else setting.help
    names = (*setting.flags, setting.parameter)
    if setting.name == "verbose":
        return click.option(*names, count=True, help=setting.help)
    if setting.kind is FLAG:
        return click.option(*names, is_flag=True, default=None, help=words)
    return click.option(
        *names, metavar=setting.kind.units, multiple=setting.kind.is_list, default=None, help=words
    )
