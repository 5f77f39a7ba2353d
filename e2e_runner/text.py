"""Durations, sizes, plurals and safe text, formatted in one place."""

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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

    Control characters, line separators and lone surrogates are escaped as Python would.

    >>> one_line("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


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
    tail = ""
    for char in reversed(text):
        if cell_width(tail + char) > keep - keep // 2:
            break
        tail = char + tail
    head = ""
    for char in text:
        if cell_width(head + char) + cell_width(tail) > keep:
            break
        head += char
    return f"{head}…{tail}"
