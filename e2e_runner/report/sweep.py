"""What ``sweep-dbs`` shows: what would go and what stays, each result, and how far it is."""

import json
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from e2e_runner import text
from e2e_runner.model import DatabaseFacts
from e2e_runner.report.live import LiveRegion
from e2e_runner.report.sink import Sink
from e2e_runner.report.style import Line, Span, Style, paint
from e2e_runner.report.terminal import Terminal
from e2e_runner.sweep_plan import (
    Candidate,
    Dropping,
    Spared,
    SweepKind,
    SweepOutcome,
    SweepPlan,
    SweepStep,
    Swept,
)

SCHEMA = "e2e-run-sweep/1"
_HEADINGS = ("DATABASE", "OWNER", "SIZE", "AGE")
_NARROWEST_OWNER = 16
_MOST_SPARED = 50  # rows of databases that stay; the document of --json has them all
_MOST_UNDER_WAY = 4
_MANY = 20  # results, after which those that went wrong have scrolled away
_MOST_REPEATED = 50
_BAR = 24
_DAY = 86400.0
_REPAINT_EVERY = 0.1  # seconds
_MARKS = {
    SweepOutcome.DROPPED: ("✓ dropped", Style.OK),
    SweepOutcome.GONE: ("- gone", Style.DIM),
    SweepOutcome.SPARED: ("- stays", Style.WARN),
    SweepOutcome.FAILED: ("✗ failed", Style.BAD),
    SweepOutcome.LEFT: ("- left", Style.WARN),
}
_MARK_WIDTH = max(len(mark) for mark, _ in _MARKS.values()) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptServer:
    """The server that is swept, as people are told of it."""

    name: str  # user@host:port
    version: str
    source: str  # what named it, as in "DATABASE_URL"


# --- text ----------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    r"""Show a name as it stands, or quoted and escaped where it could be misread.

    >>> safe_name("test_shop"), safe_name("a\nb"), safe_name(" x")
    ('test_shop', '"a\\nb"', '" x"')
    """
    plain = name.isprintable() and name == name.strip() and not set(name) & {'"', "\\"}
    if name and plain:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_flat(escaped)}"'


def _flat(words: str) -> str:
    """Escape what does not print or turns text around; the rest stays."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in words
    )


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / _DAY:.0f}d" if seconds >= 2 * _DAY else text.age(seconds)


def _size(count: int | None) -> str:
    return "?" if count is None else text.size(count)


def _wrapped(words: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        _flat(words), max(width, 40), initial_indent=indent, subsequent_indent=indent
    )


# --- what would go and what stays ----------------------------------------------------------------


def listing(plan: SweepPlan, *, width: int) -> list[Line]:
    """List what would go and what stays, each under its reason, for `width` columns."""
    shown = plan.spared[:_MOST_SPARED]
    databases = [each.database for each in plan.candidates]
    table = _Table([*databases, *(each.database for each in shown)], width)
    sections: list[list[Line]] = []
    if plan.candidates:
        sections.append([[(_to_drop(plan), Style.BOLD)], *table.grouped(plan.candidates)])
    if plan.roles:
        sections.append(_roles(plan.roles, width))
    if shown:
        count = len(plan.spared)
        words = f"{text.plural(count, 'database')} {'stays' if count == 1 else 'stay'}"
        more: Line = [(f"  … and {count - len(shown):,} more", Style.DIM)]
        rest = [more] if count > len(shown) else []
        sections.append([[(words, Style.BOLD)], *table.grouped(shown), *rest])
    if not plan.candidates and not plan.roles and not plan.refusal:
        sections.append([[("Nothing to drop", Style.OK)]])
    return [line for section in sections for line in (*section, [])][:-1]


def header(server: SweptServer) -> Line:
    """Name the server, and what named it."""
    return [
        (_flat(server.name), Style.BOLD),
        (f", PostgreSQL {_flat(server.version)} (from {_flat(server.source)})", Style.PLAIN),
    ]


def _to_drop(plan: SweepPlan) -> str:
    known = [each.database.size for each in plan.candidates if each.database.size is not None]
    size = f", {text.size(sum(known))}" if known else ""
    least = " or more" if known and len(known) < len(plan.candidates) else ""
    return f"{text.plural(len(plan.candidates), 'database')} to drop{size}{least}"


def _roles(roles: Sequence[str], width: int) -> list[Line]:
    words = f"{text.plural(len(roles), 'role')} to drop"
    return [
        [(words, Style.BOLD)],
        [("Their runs are over, and they own no database any more", Style.DIM)],
        *([(text.shorten(f"  {safe_name(role)}", width), Style.PLAIN)] for role in roles),
    ]


class _Table:
    """Rows of databases, in columns that all groups share."""

    def __init__(self, databases: Sequence[DatabaseFacts], width: int) -> None:
        rows = [_HEADINGS, *map(_cells, databases)]
        needs = [max(map(text.cell_width, column)) for column in zip(*rows, strict=True)]
        self._width = width
        name, owner, size, age = needs
        room = width - size - age - 8
        # The name is what counts: the owner gives way, and a name too long for that has its own line.
        owner = min(owner, max(room - name, _NARROWEST_OWNER))
        self._widths = (min(name, room - owner), owner, size, age)

    def grouped(self, items: "Sequence[Candidate] | Sequence[Spared]") -> Iterator[Line]:
        groups: dict[str, list[DatabaseFacts]] = {}
        for item in items:
            groups.setdefault(item.why, []).append(item.database)
        yield [(self._line(_HEADINGS), Style.DIM)]
        for why, databases in groups.items():
            words = why[:1].upper() + why[1:]
            yield from ([(line, Style.LINK)] for line in _wrapped(words, self._width, ""))
            for database in databases:
                yield from self._row(_cells(database))

    def _row(self, cells: tuple[str, str, str, str]) -> Iterator[Line]:
        if text.cell_width(cells[0]) > self._widths[0]:
            yield [(f"  {cells[0]}", Style.PLAIN)]  # in full: it is what people must recognise
            cells = ("", *cells[1:])
        yield [(self._line(cells), Style.PLAIN)]

    def _line(self, cells: Sequence[str]) -> str:
        name, owner, size, age = cells
        widths = self._widths
        return (
            f"  {_left(name, widths[0])}  {_left(text.shorten(owner, widths[1]), widths[1])}"
            f"  {size:>{widths[2]}}  {age:>{widths[3]}}"
        )


def _cells(database: DatabaseFacts) -> tuple[str, str, str, str]:
    return (
        safe_name(database.name),
        safe_name(database.owner) if database.owner else "?",
        _size(database.size),
        _age(database.age),
    )


def _left(cell: str, width: int) -> str:
    return cell + " " * (width - text.cell_width(cell))


# --- results -------------------------------------------------------------------------------------


def result_lines(result: Swept, *, width: int) -> list[Line]:
    """Tell what became of a database or role."""
    mark, style = _MARKS[result.outcome]
    kind = "" if result.kind is SweepKind.DATABASE else f"{result.kind.value} "
    took = f"  {text.duration(result.seconds)}" if result.seconds else ""
    first: Line = [
        (f"{mark:<{_MARK_WIDTH}} ", style),
        (f"{kind}{safe_name(result.name)}", Style.PLAIN),
        (took, Style.DIM),
    ]
    indent = " " * (_MARK_WIDTH + 1)
    return [first, *([(line, Style.PLAIN)] for line in _wrapped(result.reason, width, indent))]


def summary(results: Iterable[Swept], *, seconds: float) -> Line:
    """Count what became of everything."""
    counts = Counter((each.kind, each.outcome) for each in results)
    words = {
        SweepOutcome.DROPPED: "dropped",
        SweepOutcome.GONE: "gone already",
        SweepOutcome.SPARED: "kept after all",
        SweepOutcome.FAILED: "not dropped",
        SweepOutcome.LEFT: "left by the interruption",
    }
    parts = [
        f"{text.plural(counts[kind, outcome], kind.value)} {said}"
        for kind in SweepKind
        for outcome, said in words.items()
        if counts[kind, outcome]
    ]
    bad = any(outcome in _BAD for _, outcome in counts)
    return [
        (", ".join(parts) or "nothing was left to do", Style.BAD if bad else Style.OK),
        (f" in {text.duration(seconds)}", Style.PLAIN),
    ]


_BAD = frozenset({SweepOutcome.FAILED, SweepOutcome.LEFT})


class SweepConsole:
    """Shows each result, and on a terminal, with `live`, how far the sweep is.

    `clock` is monotonic, in seconds; `environ` says what the terminal is.
    """

    def __init__(
        self,
        sink: Sink,
        plan: SweepPlan,
        *,
        width: int,
        color: bool,
        live: bool,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def make_region(sink: Sink) -> LiveRegion:
            return LiveRegion(sink, self._paint, color=color, environ=environ)

        self._terminal = Terminal(sink, make_region=make_region if live else None)
        self._total = len(plan.candidates) + len(plan.roles)
        self._width = width
        self._color = color
        self._clock = clock
        self._began = clock()
        self._under_way: dict[tuple[SweepKind, str], float] = {}
        self._results: list[Swept] = []
        self._write([[]])

    def handle(self, step: SweepStep) -> None:
        """Take note of a step."""
        match step:
            case Dropping():
                self._under_way[step.kind, step.name] = self._clock()
            case Swept():
                self._under_way.pop((step.kind, step.name), None)
                self._results.append(step)
                self._write(result_lines(step, width=self._width))
            case _:
                assert_never(step)

    def interrupted(self) -> None:
        """Say that the drops under way are waited for."""
        words = "Interrupted: the drops under way finish. Ctrl-C again breaks them off."
        self._write([[(words, Style.WARN)]])

    def close(self) -> None:
        """Take the region away and write the summary, after what went wrong once more."""
        self._terminal.end_region()
        failed = [each for each in self._results if each.outcome is SweepOutcome.FAILED]
        if failed and len(self._results) > _MANY:
            self._write([[], [("Not dropped", Style.BOLD)]])
            for result in failed[:_MOST_REPEATED]:
                self._write(result_lines(result, width=self._width))
            if len(failed) > _MOST_REPEATED:
                self._write([[(f"… and {len(failed) - _MOST_REPEATED:,} more", Style.DIM)]])
        self._write([[], summary(self._results, seconds=self._clock() - self._began)])
        self._terminal.close()

    def _write(self, lines: Iterable[Line]) -> None:
        self._terminal.write("".join(f"{paint(line, color=self._color)}\n" for line in lines))

    def _paint(self, width: int, height: int) -> list[Line]:
        now = self._clock()
        # Another thread than the one that takes note of steps: one look, and that is it.
        slowest = sorted(self._under_way.copy().items(), key=lambda item: item[1])
        lines: list[Line] = [
            [
                (text.shorten(f"  dropping {safe_name(name)}", max(width - 10, 20)), Style.DIM),
                (f"  {text.duration(now - since)}", Style.DIM),
            ]
            for (_, name), since in slowest[: max(min(_MOST_UNDER_WAY, height - 2), 1)]
        ]
        return [*lines, self._progress(now)]

    def _progress(self, now: float) -> Line:
        done = len(self._results)
        bad = sum(each.outcome in _BAD for each in self._results)
        filled = _BAR * done // self._total if self._total else _BAR
        line: list[Span] = [
            ("━" * filled, Style.BAD if bad else Style.OK),
            ("─" * (_BAR - filled), Style.DIM),
            (f" {done:,}/{self._total:,}", Style.PLAIN),
        ]
        if bad:
            line.append((f"  {bad:,} not dropped", Style.BAD))
        line.append((f"  {text.duration(now - self._began)}", Style.DIM))
        return line


# --- the document of --json ----------------------------------------------------------------------


def document(
    server: SweptServer,
    plan: SweepPlan,
    results: Sequence[Swept],
    *,
    dry_run: bool,
    interrupted: bool,
    exit_code: int,
) -> str:
    """Write the document that the docstring of `e2e_runner.cli.sweep_dbs` describes."""
    ended = {(each.kind, each.name): each for each in results}

    def outcome(kind: SweepKind, name: str) -> dict[str, Any]:
        result = ended.get((kind, name))
        return {
            "outcome": result.outcome.value if result else None,
            "reason": result.reason if result else "",
            "seconds": round(result.seconds, 4) if result else None,
        }

    return json.dumps(
        {
            "schema": SCHEMA,
            "server": {
                "address": server.name,
                "version": server.version,
                "source": server.source,
            },
            "dry_run": dry_run,
            "interrupted": interrupted,
            "exit_code": exit_code,
            "refusal": plan.refusal,
            "databases": [
                {**_facts(each), **outcome(SweepKind.DATABASE, each.database.name)}
                for each in plan.candidates
            ],
            "roles": [{"name": role, **outcome(SweepKind.ROLE, role)} for role in plan.roles],
            "spared": [_facts(each) for each in plan.spared],
        },
        indent=2,
    )


def _facts(item: "Candidate | Spared") -> dict[str, Any]:
    database = item.database
    return {
        "name": database.name,
        "owner": database.owner,
        "size": database.size,
        "age": database.age,
        "sessions": database.sessions,
        "why": item.why,
    }
