"""What ``compare`` shows: two runs side by side, and what changed from one to the other. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from e2e_runner import text
from e2e_runner.model import ResultRecord, RunRecord, Status
from e2e_runner.report.columns import GAP, Column, ago, change, head, percent, row, widths
from e2e_runner.report.history import moment, result_shape, why_words
from e2e_runner.report.layout import STATUS_WIDTH, cut, status_style, status_words
from e2e_runner.report.paths import shorten_path
from e2e_runner.report.style import Line, Span, Style
from e2e_runner.trends import Change, Comparison, PastRun, Totals, pace

SCHEMA = "e2e-run-compare/1"
_MOST_ROWS = 20  # of a section; the document of --json has them all
_MOST_NAMES = 5
_LEAST_NAME = 24  # columns


def render(found: Comparison, *, now: float, width: int, strict: bool) -> list[Line]:
    """Lay out a comparison for `width` columns; `now` is in seconds since the epoch."""
    lines = [*_side_by_side(found, now=now, width=width)]
    sections = [
        ("Newly failing", Style.BAD, found.newly_failing),
        ("Fixed", Style.OK, found.fixed),
        ("Newly flaky", Style.WARN, found.newly_flaky),
        ("Newly leaked", Style.WARN, found.newly_leaked),
    ]
    for title, style, changes in sections:
        lines += _section(title, style, changes, width=width, strict=strict)
    lines += _paces("Slower", Style.WARN, found.slower, width=width)
    lines += _paces("Faster", Style.OK, found.faster, width=width)
    rest = [
        *_named("Still failing", Style.BAD, found.still_failing, width),
        *_named("Only in the first", Style.PLAIN, found.removed, width),
        *_named("Only in the second", Style.PLAIN, found.added, width),
        *_named("Without a verdict now", Style.PLAIN, found.without_verdict, width),
    ]
    return [*lines, *([[]] if rest else []), *rest, [], *conclusion(found, width=width)]


def conclusion(found: Comparison, *, width: int) -> Iterator[Line]:
    """Count what changed, on one line where `width` columns suffice."""
    failing = len(found.newly_failing)
    others = [
        (len(found.fixed), "fixed"),
        (len(found.still_failing), "still failing"),
        (len(found.newly_flaky), "newly flaky"),
        (len(found.newly_leaked), "newly leaked"),
        (len(found.slower), "slower"),
        (len(found.faster), "faster"),
    ]
    words, style = (
        (f"{failing:,} newly failing", Style.BAD)
        if failing
        else ("Nothing is newly failing", Style.OK)
    )
    line: list[Span] = [(words, style)]
    columns = len(words)
    for part in (f"{count:,} {what}" for count, what in others if count):
        if columns + len(part) + len(", ,") > width:
            yield [*line, (",", Style.PLAIN)]
            line, columns = [(f"{GAP}{part}", Style.PLAIN)], len(GAP) + len(part)
        else:
            line.append((f", {part}", Style.PLAIN))
            columns += len(part) + len(", ")
    yield line


# --- two runs side by side -----------------------------------------------------------------------


def _side_by_side(found: Comparison, *, now: float, width: int) -> Iterator[Line]:
    first, second = found.before, found.after
    columns = [
        Column(heading=""),
        Column(heading="Before", right=True),
        Column(heading="After", right=True),
        Column(heading="Change", right=True),
    ]
    rows: list[list[Span]] = []

    def add(label: str, before: str, after: str, moved: Span = ("", Style.PLAIN)) -> None:
        rows.append([(label, Style.PLAIN), (before, Style.PLAIN), (after, Style.PLAIN), moved])

    room = max((width - len("Duration") - len("Change") - 3 * len(GAP)) // 2, len("Before"))
    add("Run", text.shorten(_name(first), room), text.shorten(_name(second), room))
    add("Age", ago(first.run.started, now), ago(second.run.started, now))
    for status in Status:
        old, new = (t.counts.get(status, 0) for t in (found.totals_before, found.totals_after))
        if old or new:
            moved = f"{new - old:+d}" if new != old else ""
            add(status.value, str(old), str(new), (moved, _direction(status, new - old)))
    add("Pass rate", _pass_rate(found.totals_before), _pass_rate(found.totals_after), _rates(found))
    add("Duration", _duration(first.run), _duration(second.run), _durations(first.run, second.run))
    for label, before, after in _circumstances(first.run, second.run):
        add(label, text.shorten(before, room), text.shorten(after, room))
    sizes = widths(columns, rows)
    yield from head(columns, sizes)
    for cells in rows:
        yield row(columns, sizes, cells)
    for label, each in (("first", first), ("second", second)):
        if each.run.interrupted or each.run.exit_code is None:
            how = "was interrupted" if each.run.interrupted else "did not come to its end"
            yield [(f"The {label} run {how}: what it lacks says nothing", Style.WARN)]


def _name(run: PastRun) -> str:
    return text.one_line(run.file or run.run.id)


def _pass_rate(totals: Totals) -> str:
    return "" if totals.pass_rate is None else percent(totals.pass_rate)


def _rates(found: Comparison) -> Span:
    before, after = found.totals_before.pass_rate, found.totals_after.pass_rate
    if before is None or after is None or before == after:
        return "", Style.PLAIN
    points = (after - before) * 100
    return f"{points:+.1f} points", Style.OK if points > 0 else Style.BAD


def _direction(status: Status, difference: int) -> Style:
    """Choose a style by whether more of a status is good news."""
    style = status_style(status, strict=False)
    if style is Style.OK or difference > 0:
        return style
    return Style.OK if style in {Style.BAD, Style.WARN} else Style.DIM


def _duration(run: RunRecord) -> str:
    return "?" if run.duration is None else text.duration(run.duration)


def _durations(before: RunRecord, after: RunRecord) -> Span:
    if not before.duration or not after.duration:
        return "", Style.PLAIN
    if pace([before.duration], [after.duration], spread=0) is None:
        return "", Style.PLAIN
    moved = after.duration / before.duration - 1
    return change(moved), Style.WARN if moved > 0 else Style.OK


def _circumstances(before: RunRecord, after: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Give what else differs, as it may be the reason of all the rest."""
    pairs = [
        ("Exit code", _code(before.exit_code), _code(after.exit_code)),
        ("Jobs", str(before.jobs), str(after.jobs)),
        ("Network", before.network, after.network),
        ("Processes", before.processes, after.processes),
        ("Shard", before.shard, after.shard),
        ("Python", before.python, after.python),
        ("e2e-run", before.version, after.version),
    ]
    for label, first, second in pairs:
        if first != second:
            yield label, text.one_line(first) or "-", text.one_line(second) or "-"


def _code(code: int | None) -> str:
    return "" if code is None else str(code)


# --- what changed --------------------------------------------------------------------------------


def _section(
    title: str, style: Style, changes: Sequence[Change], *, width: int, strict: bool
) -> Iterator[Line]:
    """List examples with their new verdicts, what they were before, and why they are not ok."""
    if not changes:
        return
    yield from _title(title, style, len(changes))
    for each in changes[:_MOST_ROWS]:
        result = each.after
        if result is None:
            continue
        was = f"{GAP}(was {each.before.status.value})" if each.before else f"{GAP}(new)"
        room = max(width - len(GAP) - STATUS_WIDTH - len(GAP) - len(was), _LEAST_NAME)
        yield [
            (GAP, Style.PLAIN),
            (
                f"{status_words(result.status):<{STATUS_WIDTH}}",
                status_style(result.status, strict=strict),
            ),
            (f"{GAP}{shorten_path(text.one_line(each.path), room)}", Style.PLAIN),
            (was, Style.DIM),
        ]
        why = why_words(result)
        if why:
            indent = " " * (STATUS_WIDTH + 2 * len(GAP))
            yield [(f"{indent}{cut(why, max(width - len(indent), _LEAST_NAME))}", Style.DIM)]
    yield from _more(len(changes))


def _paces(title: str, style: Style, changes: Sequence[Change], *, width: int) -> Iterator[Line]:
    """List examples with their durations before and after."""
    if not changes:
        return
    yield from _title(title, style, len(changes))
    columns = [Column(heading="", right=True)] * 3
    rows: list[list[Span]] = []
    paths = []
    for each in changes[:_MOST_ROWS]:
        if each.before is None or each.after is None:
            continue
        before, after = each.before.duration, each.after.duration
        rows.append(
            [
                (change(after / before - 1), style),
                (text.duration(before), Style.DIM),
                (text.duration(after), Style.PLAIN),
            ]
        )
        paths.append(text.one_line(each.path))
    sizes = widths(columns, rows)
    for cells, path in zip(rows, paths, strict=True):
        moved, before_, after_ = row(columns, sizes, cells)[::2]
        room = max(width - sum(sizes) - 2 * len(GAP) - len(" -> ") - len(GAP), _LEAST_NAME)
        yield [
            (GAP, Style.PLAIN),
            moved,
            (GAP, Style.PLAIN),
            before_,
            (" -> ", Style.DIM),
            after_,
            (f"{GAP}{shorten_path(path, room)}", Style.PLAIN),
        ]
    yield from _more(len(changes))


def _title(title: str, style: Style, count: int) -> Iterator[Line]:
    yield []
    yield [(f"{title} ({count:,})", style)]


def _more(count: int) -> Iterator[Line]:
    if count > _MOST_ROWS:
        yield [(f"{GAP}… and {count - _MOST_ROWS:,} more", Style.DIM)]


def _named(title: str, style: Style, changes: Sequence[Change], width: int) -> Iterator[Line]:
    """Name examples on one line."""
    if not changes:
        return
    names = ", ".join(text.one_line(each.path.rpartition("/")[2]) for each in changes[:_MOST_NAMES])
    more = f" and {len(changes) - _MOST_NAMES:,} more" if len(changes) > _MOST_NAMES else ""
    start = f"{title} ({len(changes):,})"
    yield [
        (start, style),
        (f": {cut(names, max(width - len(start) - len(more) - 2, 8))}{more}", Style.DIM),
    ]


# --- the document of --json ----------------------------------------------------------------------


def document(found: Comparison, *, exit_code: int) -> str:
    """Write the document that the docstring of `e2e_runner.cli.compare` describes."""
    lists: Mapping[str, Iterable[Change]] = {
        "newly_failing": found.newly_failing,
        "fixed": found.fixed,
        "still_failing": found.still_failing,
        "newly_flaky": found.newly_flaky,
        "newly_leaked": found.newly_leaked,
        "slower": found.slower,
        "faster": found.faster,
        "added": found.added,
        "removed": found.removed,
        "without_verdict": found.without_verdict,
    }
    return json.dumps(
        {
            "schema": SCHEMA,
            "exit_code": exit_code,
            "before": _run(found.before, found.totals_before),
            "after": _run(found.after, found.totals_after),
            **{name: [_change(each) for each in changes] for name, changes in lists.items()},
        },
        indent=2,
    )


def _run(side: PastRun, totals: Totals) -> dict[str, Any]:
    run = side.run
    return {
        "id": run.id or None,
        "file": side.file or None,
        "started": moment(run.started),
        "duration": run.duration,
        "exit_code": run.exit_code,
        "interrupted": run.interrupted,
        "jobs": run.jobs,
        "isolation": {"network": run.network or None, "processes": run.processes or None},
        "shard": run.shard or None,
        "python": run.python or None,
        "version": run.version or None,
        "totals": {status.value: count for status, count in totals.counts.items()},
        "pass_rate": None if totals.pass_rate is None else round(totals.pass_rate, 4),
    }


def _change(change: Change) -> dict[str, Any]:
    return {"path": change.path, "before": _result(change.before), "after": _result(change.after)}


def _result(result: ResultRecord | None) -> dict[str, Any] | None:
    if result is None:
        return None
    keys = ("status", "cause", "reason", "duration", "attempts", "network")
    shape = result_shape(result)
    return {key: shape[key] for key in keys}
