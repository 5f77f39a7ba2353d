"""Durations, sizes, plurals and safe text, formatted in one place."""

import re
import unicodedata
from collections.abc import Iterator

# Directional marks among them: they put the rest of a line into another order.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")


def duration(seconds: float) -> str:
    """Format seconds for a person.

    >>> [duration(s) for s in (0.004, 0.25, 1.93, 12.34, 75, 3725)]
    ['4ms', '250ms', '1.93s', '12.3s', '1m15s', '1h02m']
    """
    if seconds < 0.9995:  # noqa: PLR2004 - what would round to 1000ms is a second
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.995:  # noqa: PLR2004 - three significant digits
        return f"{seconds:.2f}s"
    if seconds < 59.95:  # noqa: PLR2004 - same
        return f"{seconds:.1f}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{secs:02}s"


def age(seconds: float) -> str:
    """Format how long ago something began, in whole seconds: start times are no more exact.

    >>> [age(s) for s in (0.4, 1.93, 59.99, 75, 3725)]
    ['0s', '1s', '59s', '1m15s', '1h02m']
    """
    whole = max(int(seconds), 0)
    return f"{whole}s" if whole < 60 else duration(whole)  # noqa: PLR2004 - a minute


def limit(seconds: float) -> str:
    """Format a limit that a person set, exactly and without needless digits.

    >>> [limit(s) for s in (0.5, 5, 60, 90, 150, 7200, 2.25)]
    ['500ms', '5s', '60s', '90s', '2m30s', '2h', '2.25s']
    """
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    if seconds < 120 or seconds != int(seconds):  # noqa: PLR2004 - up to two minutes count in seconds
        return f"{seconds:g}s"
    hours, rest = divmod(int(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (secs, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def size(count: int) -> str:
    """Format a number of bytes for a person.

    >>> [size(n) for n in (0, 1023, 1536, 64 * 1024**2)]
    ['0 B', '1023 B', '1.5 KiB', '64.0 MiB']
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the ratio of the units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Count a noun.

    >>> plural(1, "example"), plural(2, "example"), plural(0, "process", "processes")
    ('1 example', '2 examples', '0 processes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def one_line(text: str) -> str:
    r"""Make text from outside (a path, a command line) safe to print on one line.

    Control characters, directional marks, line separators and lone surrogates are escaped as Python
    would.

    >>> one_line("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def short_note(words: str) -> str:
    """Shorten a note on a tier to its name and the last thing said, without paths.

    >>> short_note("cgroup: /sys/fs/cgroup/x: Permission denied (not delegated to this user)")
    'cgroup: not delegated to this user'
    >>> short_note("namespace: unshare: Operation not permitted (it needs CAP_SYS_ADMIN)")
    'namespace: it needs CAP_SYS_ADMIN'
    >>> short_note("cgroup: /sys/fs/cgroup/x: Device or resource busy (/sys/fs/cgroup/x/cgroup.procs)")
    'cgroup: Device or resource busy'
    """
    tier, _, why = one_line(words).partition(": ")
    said, _, bracket = why.partition(" (")
    detail = bracket.removesuffix(")")
    if not detail or "/" in detail:
        detail = said.rpartition(": ")[2]
    return f"{tier}: {detail}" if detail else tier


def strip_ansi(text: str) -> str:
    r"""Remove terminal escape sequences: colours, cursor movements, titles and links.

    >>> strip_ansi("\x1b[31merror\x1b[0m: \x1b]8;;http://a\x07link\x1b]8;;\x07")
    'error: link'
    """
    return _ESCAPE.sub("", text)


def cell_width(text: str) -> int:
    """Count the terminal columns that `text` takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, width: int) -> str:
    """Cut text to `width` terminal columns, marking the cut with an ellipsis in the middle.

    >>> shorten("examples/example_orm_routes.py", 20)
    'examples/…_routes.py'
    """
    if cell_width(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    keep = width - 1
    tail, used = _fitting(reversed(text), keep - keep // 2)
    head, _ = _fitting(iter(text), keep - used)
    return f"{''.join(head)}…{''.join(reversed(tail))}"


def _fitting(chars: Iterator[str], width: int) -> tuple[list[str], int]:
    """Take the characters that fit into `width` columns, and say how many columns they take."""
    taken: list[str] = []
    used = 0
    for char in chars:
        columns = cell_width(char)
        if used + columns > width:
            break
        taken.append(char)
        used += columns
    return taken, used
