"""Rows of cells in columns that line up, and the few words that tables of past runs share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from e2e_runner import text
from e2e_runner.report.style import Line, Span, Style

GAP = "  "
_DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its heading, and whether its cells stand at its right end."""

    heading: str
    right: bool = False


def widths(columns: Sequence[Column], rows: Sequence[Sequence[Span]]) -> list[int]:
    """Give each column what its widest cell needs."""
    return [
        max(text.cell_width(column.heading), *(text.cell_width(row[n][0]) for row in rows))
        if rows
        else text.cell_width(column.heading)
        for n, column in enumerate(columns)
    ]


def head(columns: Sequence[Column], sizes: Sequence[int]) -> Iterator[Line]:
    """Give the headings, and a rule below them."""
    cells = [(column.heading, Style.BOLD) for column in columns]
    yield row(columns, sizes, cells)
    yield [(GAP.join("─" * size for size in sizes), Style.DIM)]


def row(columns: Sequence[Column], sizes: Sequence[int], cells: Sequence[Span]) -> Line:
    """Pad cells to the sizes of their columns."""
    line: list[Span] = []
    for column, size, (words, style) in zip(columns, sizes, cells, strict=True):
        blank = " " * (size - text.cell_width(words))
        padded = blank + words if column.right else words + blank
        line += [(GAP, Style.PLAIN)] if line else []
        line.append((padded, style))
    return line


def ago(started: float, now: float) -> str:
    """Say how long ago something began; both are in seconds since the epoch, 0 for unknown.

    >>> ago(1000, 1003.5), ago(0, 1003.5), ago(1000, 1000 + 3 * 86400)
    ('3s', '?', '3d')
    """
    if not started:
        return "?"
    seconds = max(now - started, 0)
    return f"{seconds / _DAY:.0f}d" if seconds >= 2 * _DAY else text.age(seconds)


def percent(part: float) -> str:
    """Write a part of 1 in percent, so that only all is 100 % and only nothing 0 %.

    >>> [percent(part) for part in (0, 0.001, 0.5, 0.999, 1)]
    ['0%', '1%', '50%', '99%', '100%']
    """
    whole = round(part * 100)
    return f"{min(max(whole, 1), 99) if 0 < part < 1 else whole}%"


def change(part: float) -> str:
    """Write a change in percent, with its sign.

    >>> change(0.37), change(-0.5), change(2.5)
    ('+37%', '-50%', '+250%')
    """
    return f"{part * 100:+.0f}%"
