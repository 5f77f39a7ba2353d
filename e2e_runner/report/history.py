"""What ``history`` shows: what needs attention first, or one example's verdicts. Pure."""

import itertools
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from e2e_runner import text
from e2e_runner.model import NetworkMode, ResultRecord, Status
from e2e_runner.report.columns import GAP, Column, ago, change, head, percent, row, widths
from e2e_runner.report.layout import status_style, status_words
from e2e_runner.report.paths import common_folder, shorten_alike, shortest
from e2e_runner.report.style import Line, Span, Style
from e2e_runner.trends import Attention, Standing

SCHEMA = "e2e-run-history/1"
_LONGEST_STRIP = 20  # verdicts shown as a character each
_SHORTEST_STRIP = 10
_MOST_NAMES = 5
_MOST_ROWS = 60  # above this, only what needs attention has a row
_SYMBOLS = {  # each as wide in ASCII; letters where a glance must tell two bad ones apart
    Status.PASSED: "·",
    Status.SERVED: "·",
    Status.FLAKY: "~",
    Status.LEAKED: "!",
    Status.FAILED: "✗",
    Status.TIMEOUT: "T",
    Status.BLOCKED: "B",
}
_SECTIONS = {
    Attention.FAILING: ("Not ok", Style.BAD),
    Attention.FLAKY: ("Flaky", Style.WARN),
    Attention.SLOWER: ("Slower", Style.WARN),
    Attention.MENDED: ("Ok again", Style.OK),
    Attention.NONE: ("Steady", Style.OK),
}
_EXAMPLE = Column(heading="Example")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The examples of a project by their histories."""

    standings: Sequence[Standing]  # in the order in which they are shown
    runs: int  # how many the history knows
    latest: float  # start of the last one, in seconds since the epoch
    gone: Sequence[str] = ()  # paths that the history knows, and no file has any more
    without_verdict: Sequence[str] = ()  # paths that were only ever skipped or left


# --- all examples --------------------------------------------------------------------------------


def overview(shown: Overview, *, now: float, width: int, strict: bool) -> list[Line]:
    """Give a line on each example, for `width` columns; `now` is in seconds since the epoch."""
    count = text.plural(len(shown.standings), "example")
    runs = text.plural(shown.runs, "run")
    lines: list[Line] = [
        [(f"{count}, {runs}, the last {ago(shown.latest, now)} ago", Style.DIM)],
        [],
    ]
    listed = shown.standings
    if len(listed) > _MOST_ROWS:
        listed = [each for each in listed if each.attention is not Attention.NONE]
    if listed:
        lines += _table(listed, width=width, strict=strict)
    if steady := len(shown.standings) - len(listed):
        words = f"… and {steady:,} steady ones, not listed: name one, or see --json"
        lines.append([(words, Style.DIM)])
    statuses = {each.status for standing in listed for each in standing.verdicts}
    if statuses:
        lines += [[], _legend(statuses)]
        if any(each.streak > 1 for each in listed):
            lines.append([("x3 says that the last three verdicts are the same", Style.DIM)])
    for paths, words in (
        (shown.without_verdict, "Without a verdict so far"),
        (shown.gone, "Not listed, as the file is gone"),
    ):
        if paths:
            lines += _paragraph(f"{words} ({len(paths):,}): {_names(paths)}", width)
    return lines


def _table(standings: Sequence[Standing], *, width: int, strict: bool) -> Iterator[Line]:
    fixed = [
        (
            Column(heading="Runs", right=True),
            [(str(len(s.verdicts)), Style.PLAIN) for s in standings],
        ),
        (Column(heading="Not ok", right=True), [_rate(s) for s in standings]),
        (Column(heading="Time", right=True), [(_time(s.duration), Style.PLAIN) for s in standings]),
        (Column(heading="Trend", right=True), [_trend(s) for s in standings]),
        (Column(heading="Last"), [_last(s, strict=strict) for s in standings]),
    ]
    # A column that has nothing to say leaves its room to the names.
    used = [(column, cells) for column, cells in fixed if any(words for words, _ in cells)]
    middle = [column for column, _ in used]
    rows = [[cells[n] for _, cells in used] for n in range(len(standings))]
    sizes = widths(middle, rows)
    room = width - sum(sizes) - len(GAP) * (len(sizes) + 1)
    paths = [text.one_line(each.path) for each in standings]
    longest = max((len(each.verdicts) for each in standings), default=0)
    example, strip = _share(room, paths, longest)
    shown = shorten_alike(paths, common_folder(paths), example)
    example = max(map(text.cell_width, (_EXAMPLE.heading, *shown)))
    columns = [_EXAMPLE, *middle, Column(heading="Verdicts")]
    sizes = [example, *sizes, max(strip, len("Verdicts"))]
    yield from head(columns, sizes)
    sections = {each.attention for each in standings}
    section = None
    for standing, path, cells in zip(standings, shown, rows, strict=True):
        if standing.attention is not section and sections != {Attention.NONE}:
            section = standing.attention
            words, style = _SECTIONS[section]
            count = sum(each.attention is section for each in standings)
            yield [(f"{words} ({count:,})", style)]
        line = row(columns[:-1], sizes[:-1], [(path, Style.PLAIN), *cells])
        yield [*line, (GAP, Style.PLAIN), *_strip(standing, strip, strict=strict)]


def _share(room: int, paths: Sequence[str], longest: int) -> tuple[int, int]:
    """Share out the room between names and verdicts; gives the columns of each."""
    most = min(max(longest, len("Verdicts")), _LONGEST_STRIP)
    least = min(most, _SHORTEST_STRIP)
    folder = common_folder(paths)
    whole = max(map(text.cell_width, paths), default=0)
    short = max((shortest(path, folder) for path in paths), default=0)
    for example in (whole, short):
        if room - example >= least:
            return example, min(most, room - example)
    return max(room - least, len(_EXAMPLE.heading)), least


def _rate(standing: Standing) -> Span:
    style = Style.PLAIN if standing.bad else Style.DIM
    return percent(standing.failure_rate), style


def _time(seconds: float | None) -> str:
    return "" if seconds is None else text.duration(seconds)


def _trend(standing: Standing) -> Span:
    if standing.trend is None:
        return "", Style.PLAIN
    style = Style.WARN if standing.trend.change > 0 else Style.OK
    return change(standing.trend.change), style


def _network(mode: NetworkMode | None) -> str:
    return "" if mode is None else mode.value


def _last(standing: Standing, *, strict: bool) -> Span:
    status = standing.last.status
    times = f" x{standing.streak}" if standing.streak > 1 else ""
    flaky = ", flaky" if standing.flaky and standing.attention is Attention.FAILING else ""
    host = ", host" if standing.network is NetworkMode.HOST else ""
    return f"{status_words(status)}{times}{flaky}{host}", status_style(status, strict=strict)


def _strip(standing: Standing, length: int, *, strict: bool) -> Iterator[Span]:
    """Draw the last verdicts, the newest at the right, a character each."""
    drawn = [
        (_SYMBOLS[each.status], status_style(each.status, strict=strict))
        for each in standing.verdicts[-length:]
    ]
    for style, symbols in itertools.groupby(drawn, key=lambda each: each[1]):
        words = "".join(symbol for symbol, _ in symbols)
        yield words, Style.DIM if style is Style.OK else style


def _legend(statuses: Iterable[Status]) -> Line:
    occurred = set(statuses)
    ok = [Status.PASSED] if occurred & {Status.PASSED, Status.SERVED} else []
    others = [s for s in _SYMBOLS if s in occurred - {Status.PASSED, Status.SERVED}]
    parts = [f"{_SYMBOLS[s]} {'ok' if s is Status.PASSED else s.value}" for s in (*ok, *others)]
    return [(f"{GAP.join(parts)}{GAP}(the newest at the right)", Style.DIM)]


def _names(paths: Sequence[str]) -> str:
    shown = ", ".join(map(text.one_line, paths[:_MOST_NAMES]))
    more = len(paths) - _MOST_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _paragraph(words: str, width: int, indent: str = "") -> list[Line]:
    rows = textwrap.wrap(
        words,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent or GAP,
        break_on_hyphens=False,
    )
    return [[(each, Style.DIM)] for each in rows]


# --- one example ---------------------------------------------------------------------------------


def detail(
    path: str,
    standing: Standing | None,
    results: Sequence[ResultRecord],
    *,
    now: float,
    width: int,
    strict: bool,
) -> list[Line]:
    """Tell of one example: its verdicts together, then its results, newest first, one by one.

    `standing` is None where it never came to a verdict.
    """
    lines: list[Line] = [[(text.one_line(path), Style.BOLD)]]
    if standing is None:
        lines.append([(f"{GAP}It never came to a verdict", Style.DIM)])
    else:
        lines += _summary(standing, now=now, width=width, strict=strict)
    return [*lines, [], *_results(results, now=now, width=width, strict=strict)]


def _summary(standing: Standing, *, now: float, width: int, strict: bool) -> Iterator[Line]:
    last = standing.last.status
    count, total = standing.streak, len(standing.verdicts)
    age = ago(standing.since.started, now)
    run = f"(run {text.one_line(standing.since.run)})"
    if count == 1:
        lately = f"in the last run, {age} ago {run}"
    elif count == total:
        lately = f"in each of the last {total:,} runs"
    else:
        lately = f"in each of the last {count:,} runs, since {age} ago {run}"
    yield [(f"{GAP}{last.value.capitalize()} {lately}", status_style(last, strict=strict))]
    if 0 < standing.bad < total:
        words = f"Not ok in {standing.bad:,} of the last {total:,} runs"
        yield [(f"{GAP}{words} ({percent(standing.failure_rate)})", Style.PLAIN)]
    if standing.flaky:
        yield [(f"{GAP}Flaky: its verdicts change, and nothing tells why", Style.WARN)]
    if standing.trend is not None:
        how = "Slower" if standing.trend.change > 0 else "Faster"
        before, after = map(text.duration, (standing.trend.before, standing.trend.after))
        style = Style.WARN if standing.trend.change > 0 else Style.OK
        said = f"{how}: it takes {after}, and took {before} ({change(standing.trend.change)})"
        yield [(f"{GAP}{said}", style)]
    elif standing.duration is not None:
        yield [(f"{GAP}It takes {text.duration(standing.duration)}", Style.PLAIN)]
    if standing.network is NetworkMode.HOST:
        said = "Learned: it fails in a network of its own, and is run on the host network"
        yield [(f"{GAP}{said}", Style.PLAIN)]
    strip = _strip(standing, min(_LONGEST_STRIP, width - len(GAP)), strict=strict)
    yield [(GAP, Style.PLAIN), *strip]


def _results(
    results: Sequence[ResultRecord], *, now: float, width: int, strict: bool
) -> Iterator[Line]:
    fixed = [
        (Column(heading="Run"), [(text.one_line(r.run), Style.PLAIN) for r in results]),
        (Column(heading="Age", right=True), [(ago(r.started, now), Style.DIM) for r in results]),
        (
            Column(heading="Verdict"),
            [(status_words(r.status), status_style(r.status, strict=strict)) for r in results],
        ),
        (
            Column(heading="Time", right=True),
            [(_time(r.duration or None), Style.PLAIN) for r in results],
        ),
        (Column(heading="Tries", right=True), [(_tries(r), Style.PLAIN) for r in results]),
        (Column(heading="Network"), [(_network(r.network), Style.PLAIN) for r in results]),
    ]
    used = [(column, cells) for column, cells in fixed if any(words for words, _ in cells)]
    columns = [column for column, _ in used]
    rows = [[cells[n] for _, cells in used] for n in range(len(results))]
    sizes = widths(columns, rows)
    room = width - sum(sizes) - len(GAP) * len(sizes)
    yield from head(columns, sizes)
    for result, cells in zip(results, rows, strict=True):
        line = row(columns, sizes, cells)
        why = why_words(result)
        if text.cell_width(why) <= room:
            yield [*line, (f"{GAP}{why}", Style.DIM)]
        else:  # in full: it is what one looks for here
            yield line
            yield from _paragraph(why, width, indent=2 * GAP)


def _tries(result: ResultRecord) -> str:
    if result.repeats > 1:
        return f"{result.repeats_passed}/{result.repeats} ok"
    return str(result.attempts) if result.attempts > 1 else ""


def why_words(result: ResultRecord) -> str:
    """Give cause and reason on one line; empty where neither is known."""
    return text.one_line(": ".join(part for part in (result.cause, result.reason) if part))


# --- the document of --json ----------------------------------------------------------------------


def document(
    standings: Iterable[Standing],
    *,
    runs: int,
    gone: Iterable[str] = (),
    results: Iterable[ResultRecord] | None = None,
) -> str:
    """Write the document that the docstring of `e2e_runner.cli.history_` describes."""
    known = set(gone)
    shape: dict[str, Any] = {
        "schema": SCHEMA,
        "runs": runs,
        "examples": [{**_standing(each), "present": each.path not in known} for each in standings],
    }
    if results is not None:
        shape["results"] = list(map(result_shape, results))
    return json.dumps(shape, indent=2)


def _standing(standing: Standing) -> dict[str, Any]:
    moved = standing.trend
    return {
        "path": standing.path,
        "attention": standing.attention.value,
        "runs": len(standing.verdicts),
        "not_ok": standing.bad,
        "failure_rate": round(standing.failure_rate, 4),
        "flaky": standing.flaky,
        "duration": standing.duration,
        "trend": {"before": moved.before, "after": moved.after} if moved else None,
        "last": standing.last.status.value,
        "last_run": standing.last.run,
        "streak": standing.streak,
        "since_run": standing.since.run,
        "verdicts": [each.status.value for each in standing.verdicts],
        "network": standing.network.value if standing.network else None,
    }


def result_shape(result: ResultRecord) -> dict[str, Any]:
    """Describe a result as it is remembered."""
    return {
        "run": result.run,
        "started": moment(result.started),
        "path": result.path,
        "status": result.status.value,
        "cause": result.cause,
        "reason": result.reason,
        "duration": result.duration,
        "cpu": result.cpu,
        "max_rss": result.max_rss,
        "attempts": result.attempts,
        "repeat": {"runs": result.repeats, "passed": result.repeats_passed}
        if result.repeats > 1
        else None,
        "network": result.network.value if result.network else None,
        "listened": list(result.listened),
    }


def moment(seconds: float) -> str | None:
    """Write seconds since the epoch as ISO 8601; None where they are not known."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
