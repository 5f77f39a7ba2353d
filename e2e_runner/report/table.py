"""The table titled Example Results Summary. Pure, and within the width that it is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from e2e_runner import text
from e2e_runner.model import Result, Status
from e2e_runner.report.display import Verbosity, shown
from e2e_runner.report.evidence import brief
from e2e_runner.report.layout import (
    STATUS_WIDTH,
    cut,
    share,
    skipped_groups,
    status_style,
    status_words,
    took,
    with_whereabouts,
)
from e2e_runner.report.paths import common_folder, shorten_alike, shortest
from e2e_runner.report.style import Line, Style
from e2e_runner.state import RunState

TITLE = "Example Results Summary"
MOST_ROWS = 60  # above this, only what needs attention has a row
_MOST_SKIPPED = 10
_GAP = "  "
_DULL = {Status.PASSED, Status.SERVED, Status.SKIPPED}  # for whose notes no path is cut
_HEADINGS = ("Example", "Status", "Time", "Note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The results that get a row, and what is said about the others in one line each."""

    results: Sequence[Result]
    unlisted_ok: int  # passed and served ones
    unlisted_skipped: int
    unlisted_pending: int  # not-run ones that never started


def choose_rows(state: RunState, *, strict: bool) -> Rows:
    """Choose what to list: everything while that is short, else what needs attention.

    Skipped examples are grouped by reason as soon as they are many: with ``-k`` they would bury the
    few that ran.
    """
    results = sorted(state.results.values(), key=lambda result: result.path)
    many_skipped = state.counts[Status.SKIPPED] > _MOST_SKIPPED
    listed = [r for r in results if not (many_skipped and r.status is Status.SKIPPED)]
    if len(listed) > MOST_ROWS:
        listed = [r for r in listed if _needs_attention(r, strict=strict)]
    kept = dict.fromkeys(Status, 0)
    for result in listed:
        kept[result.status] += 1
    left = {status: state.counts[status] - kept[status] for status in Status}
    return Rows(
        results=listed,
        unlisted_ok=left[Status.PASSED] + left[Status.SERVED],
        unlisted_skipped=left[Status.SKIPPED],
        unlisted_pending=left[Status.NOT_RUN],
    )


def _needs_attention(result: Result, *, strict: bool) -> bool:
    started = result.attempts > 0
    pending = result.status is Status.NOT_RUN and not started
    row = shown(result.status, verbosity=Verbosity.NORMAL, strict=strict, started=started).row
    return row and not pending


def table(state: RunState, *, width: int, strict: bool) -> Iterator[Line]:
    """Give the table: example, status, time, note; then a line on what it leaves out."""
    rows = choose_rows(state, strict=strict)
    yield [(TITLE, Style.BOLD)]
    if rows.results:
        notes = [with_whereabouts(brief(r), r, state) for r in rows.results]
        yield from _table(rows.results, notes, width=width, strict=strict)
    if rows.unlisted_ok:
        yield [(f"… and {rows.unlisted_ok:,} that passed, not listed", Style.DIM)]
    if rows.unlisted_pending:
        yield [(f"… and {rows.unlisted_pending:,} that did not run, not listed", Style.DIM)]
    if rows.unlisted_skipped:
        yield from skipped_groups(
            [result.reason for result in state.results.values() if result.status is Status.SKIPPED]
        )


def _table(
    results: Sequence[Result], said: Sequence[str], *, width: int, strict: bool
) -> Iterator[Line]:
    cells = [
        (text.one_line(r.path), status_words(r.status), took(r), words)
        for r, words in zip(results, said, strict=True)
    ]
    time = max(len(_HEADINGS[2]), *(len(row[2]) for row in cells))
    room = width - STATUS_WIDTH - time - 3 * len(_GAP)
    paths = [row[0] for row in cells]
    folder = common_folder(paths)
    widest = max(len(_HEADINGS[0]), *map(text.cell_width, paths))
    notes = [text.cell_width(row[3]) for row in cells]
    example, rest = share(room, widest, max(len(_HEADINGS[3]), *notes), widest)
    urgent = max(
        (columns for columns, r in zip(notes, results, strict=True) if r.status not in _DULL),
        default=0,
    )
    if urgent > rest:
        least = max(len(_HEADINGS[0]), *(shortest(path, folder) for path in paths))
        example, rest = share(room, widest, urgent, least)
    cut_paths = shorten_alike(paths, folder, example)
    example = max(len(_HEADINGS[0]), *map(text.cell_width, cut_paths))
    rest = min(max(len(_HEADINGS[3]), *notes), room - example)
    rule = _GAP.join("─" * columns for columns in (example, STATUS_WIDTH, time, rest))
    yield [
        (f"{'Example':<{example}}{_GAP}{'Status':<{STATUS_WIDTH}}{_GAP}", Style.BOLD),
        (f"{'Time':>{time}}{_GAP}Note", Style.BOLD),
    ]
    yield [(rule, Style.DIM)]
    for result, path, (_, status, took_, reason) in zip(results, cut_paths, cells, strict=True):
        style = status_style(result.status, strict=strict)
        yield [
            (_padded(path, example), Style.PLAIN),
            (f"{_GAP}{status:<{STATUS_WIDTH}}", style),
            (f"{_GAP}{took_:>{time}}{_GAP}", Style.PLAIN),
            (cut(reason, rest), Style.PLAIN if style is Style.BAD else Style.DIM),
        ]


def _padded(words: str, columns: int) -> str:
    return words + " " * (columns - text.cell_width(words))
