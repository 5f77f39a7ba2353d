"""What the console shows, and how it may show it. Pure decisions, each under a truth table."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from e2e_runner.model import Color, Status
from e2e_runner.verdict import is_bad

DEFAULT_WIDTH = 80
_NARROWEST = 40
_WIDEST = 200


class Verbosity(IntEnum):
    """How much the console tells."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2

    @classmethod
    def of(cls, *, verbose: int, quiet: bool) -> "Verbosity":
        """Combine ``-v`` (counted) and ``-q``; quiet wins."""
        if quiet:
            return cls.QUIET
        return cls.VERBOSE if verbose else cls.NORMAL


class Details(Enum):
    """How much of the evidence on an example is shown after the run."""

    NONE = "none"
    SHORT = "everything but its output"
    FULL = "everything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is shown of one finished example."""

    line: bool  # the line when it finishes
    details: Details  # the block after the run
    row: bool  # the row in a summary table that is long enough to be thinned


def shown(status: Status, *, verbosity: Verbosity, strict: bool, started: bool) -> Shown:
    """Decide what is shown of a finished example. `started` says that it ran at all.

    Not-run examples that never started are many after an interrupt and say nothing one by one. One
    that was interrupted in the middle shows its output, since it is often the one that hung.
    """
    bad = is_bad(status, strict=strict)
    pending = status is Status.NOT_RUN and not started
    suspicious = status in {Status.LEAKED, Status.FLAKY}
    verbose = verbosity is Verbosity.VERBOSE
    quiet = verbosity is Verbosity.QUIET
    if bad and not pending:
        details = Details.FULL
    elif suspicious and not quiet:
        details = Details.SHORT
    else:
        details = Details.NONE
    return Shown(
        line=(bad or not quiet) and (not pending or verbose),
        details=details,
        row=bad or suspicious,
    )


def is_set(environ: Mapping[str, str], name: str) -> bool:
    """Tell whether an on/off variable is on: present, not empty, and no word for off."""
    return environ.get(name, "").lower() not in {"", "0", "false", "no", "off"}


def use_color(choice: Color, *, isatty: bool, environ: Mapping[str, str]) -> bool:
    """Decide on colours. An explicit choice wins, then NO_COLOR (any text), then FORCE_COLOR."""
    if choice is not Color.AUTO:
        return choice is Color.ALWAYS
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return is_set(environ, "FORCE_COLOR")
    return isatty and environ.get("TERM") != "dumb"


def use_live(
    *, isatty: bool, environ: Mapping[str, str], verbosity: Verbosity, no_capture: bool
) -> bool:
    """Decide on the live region. It needs a terminal that moves its cursor and nobody else's output."""
    able = isatty and environ.get("TERM", "") not in {"", "dumb", "unknown"}
    wanted = verbosity is not Verbosity.QUIET and not no_capture
    return able and wanted and not is_set(environ, "CI")


def use_width(*, environ: Mapping[str, str], terminal_columns: int | None) -> int:
    """Decide on the width in columns: COLUMNS, else the terminal's, else 80."""
    asked = environ.get("COLUMNS", "")
    columns = int(asked[:6]) if asked.isascii() and asked.isdigit() else 0
    return min(max(columns or terminal_columns or DEFAULT_WIDTH, _NARROWEST), _WIDEST)
