"""What the console says, line by line. Pure: state in, styled lines out; the width is an argument."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from e2e_runner import text
from e2e_runner.events import AttemptFinished
from e2e_runner.model import Containment, NetworkTier, Plan, Result, RunInfo, Status, StepOutcome
from e2e_runner.report.evidence import (
    attempts,
    facts,
    flat,
    last_lines,
    last_steps,
    made_alone,
    note,
    places,
    repeats,
    whereabouts,
)
from e2e_runner.report.paths import relative, shorten_path, shortest
from e2e_runner.report.style import Line, Span, Style
from e2e_runner.state import RunState
from e2e_runner.verdict import all_passed, is_bad, nothing_to_remark

_INDENT = "  "
_BETWEEN = " · "
_MOST_ROWS_OF_A_LINE = 4  # a long line of output is wrapped into this many rows at most
_MOST_NAMES = 5
_LONGEST_NOTE = 64  # columns of the reason why a tier is not in force
_LONGEST_HEADER = 120  # columns of a line of it in a log, which has no width
_PASSIVE = ("only imports, definitions ", "defines main() ")  # how discovery's reasons begin

_MARKS = {
    Status.PASSED: "✓",
    Status.SERVED: "✓",
    Status.FLAKY: "!",
    Status.LEAKED: "!",
    Status.FAILED: "✗",
    Status.TIMEOUT: "✗",
    Status.BLOCKED: "✗",
    Status.SKIPPED: "-",
    Status.NOT_RUN: "-",
}
_STEP_STYLES = {
    StepOutcome.OK: Style.DIM,
    StepOutcome.FAILED: Style.BAD,
    StepOutcome.UNFINISHED: Style.WARN,
}
STATUS_WIDTH = max(len(status.value) for status in Status) + 2


def status_style(status: Status, *, strict: bool) -> Style:
    """Choose a style by what a status means for the run."""
    if status is Status.NOT_RUN:
        return Style.WARN
    if is_bad(status, strict=strict):
        return Style.BAD
    if status in {Status.FLAKY, Status.LEAKED}:
        return Style.WARN
    return Style.DIM if status is Status.SKIPPED else Style.OK


def status_words(status: Status) -> str:
    """Give a status with its mark, so that it is seen without colours."""
    return f"{_MARKS[status]} {status.value}"


def took(result: Result) -> str:
    """Give the time of an example that ran, and nothing for one that did not."""
    return text.duration(result.duration) if result.attempts else ""


def header(run: RunInfo, plan: Plan, *, width: int | None) -> Iterator[Line]:
    """Say what runs, by which interpreter, and how it is held together."""
    parts = [text.plural(len(plan.examples), "example")]
    if plan.deselected:
        parts[0] += f" ({len(plan.deselected)} skipped)"
    if run.jobs > 1:
        parts.append(text.plural(run.jobs, "job"))
    parts.append(f"python: {text.one_line(relative(run.python, run.root))}")
    if run.processes is not None:
        why = () if run.processes is Containment.CGROUP else run.containment_notes
        parts.append(f"processes: {run.processes.value}{_why_lesser(why)}")
        # The label says already that it is a network which is missing.
        notes = (each.removeprefix("network ") for each in run.network_notes)
        why = () if run.network is NetworkTier.NAMESPACE else tuple(notes)
        parts.append(f"network: {run.network.value}{_why_lesser(why)}")
    line: list[Span] = [(f"e2e-run {run.version}", Style.BOLD)]
    columns = len(line[0][0])
    for whole in parts:
        part = whole if width is None else text.shorten(whole, width - len(_INDENT))
        columns += text.cell_width(part) + len(_BETWEEN)
        if columns > (width or _LONGEST_HEADER):
            yield line
            line, columns = [(f"{_INDENT}{part}", Style.DIM)], len(_INDENT) + text.cell_width(part)
        else:
            line.append((f"{_BETWEEN}{part}", Style.DIM))
    yield line
    narrowed = (text.one_line(each) for each in (plan.shard, plan.last_failed) if each)
    for words in (*narrowed, *_about_postgres(run)):
        said = words if width is None else cut(words, width - len(_INDENT))
        yield [(f"{_INDENT}{said}", Style.DIM)]


def _about_postgres(run: RunInfo) -> Iterator[str]:
    if run.postgres:
        yield f"PostgreSQL: {text.one_line(run.postgres)}"
    if run.withheld:
        first, *others = map(text.one_line, run.withheld)
        named = (
            f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])
        )
        yield f"kept from the examples: {named} (--postgres env uses them)"


def _why_lesser(notes: Sequence[str]) -> str:
    """Say in brackets why the next better tier is not in force; `list -v` has all of it."""
    return f" ({text.shorten(text.short_note(notes[-1]), _LONGEST_NOTE)})" if notes else ""


def warning(message: str, path: str | None = None) -> Line:
    """Say something that a person should know."""
    about = f"{text.one_line(path)}: " if path else ""
    return [("warning: ", Style.WARN), (f"{about}{flat(message)}", Style.PLAIN)]


def finished(
    result: Result, state: RunState, *, width: int | None, strict: bool, folder: str = ""
) -> Line:
    """Give the one line on an example that finished, within `width` columns; None cuts nothing.

    `folder` is the one that all examples of the run lie in.
    """
    count = f"{state.done:>{len(str(state.selected))}}/{state.selected}"
    style = status_style(result.status, strict=strict)
    said = repeats(result) if style is Style.OK else note(result)
    reason = with_whereabouts(said, result, state)
    return _one_line(count, result, reason, style, width=width, folder=folder)


def attempt_failed(
    attempt: AttemptFinished,
    state: RunState,
    *,
    width: int | None,
    strict: bool,
    folder: str = "",
) -> Line:
    """Give the one line on an attempt that was not ok and not the last; it counts as none finished."""
    result = attempt.result
    count = f"{'…':>{2 * len(str(state.selected)) + 1}}"
    style = status_style(result.status, strict=strict)
    again = f"once more: {flat(attempt.again)}"
    reason = f"{note(result)}; {again}" if note(result) else again
    return _one_line(count, result, reason, style, width=width, folder=folder)


def _one_line(
    count: str, result: Result, reason: str, style: Style, *, width: int | None, folder: str
) -> Line:
    count = f"{count}{_INDENT}"
    status = f"{status_words(result.status):<{STATUS_WIDTH}}"
    time = f"{took(result):>7}  "
    path = text.one_line(result.path)
    if width is not None:
        room = width - len(count) - len(status) - len(time) - len(_INDENT)
        path_room, reason_room = share(
            room, text.cell_width(path), text.cell_width(reason), shortest(path, folder)
        )
        path = shorten_path(path, path_room)
        reason = cut(reason, reason_room)
    line = [(count, Style.DIM), (status, style), (time, Style.DIM), (path, Style.PLAIN)]
    kind = Style.DIM if style is Style.OK else style
    return [*line, (f"{_INDENT}{reason}", kind)] if reason else line


def with_whereabouts(words: str, result: Result, state: RunState) -> str:
    """Add to a note where the example ran, and that it was alone, if that is not usual nor said yet."""
    for part in (whereabouts(result, state), made_alone(result)):
        if part and part.partition(" (")[0] not in words:
            words = f"{words}; {part}" if words else part
    return words


def remarks(result: Result) -> Iterator[Line]:
    """Give what else is known of an example that finished: what it says of itself, then the notes."""
    summary = [flat(result.summary)] if result.summary.strip() else []
    for words in [*summary, *map(text.one_line, result.notes)]:
        yield [(f"{2 * _INDENT}{words}", Style.DIM)]


def details(
    result: Result,
    *,
    width: int | None,
    strict: bool,
    with_output: bool,
    root: Path,
    earlier: Sequence[AttemptFinished] = (),
) -> Iterator[Line]:
    """Give the evidence on one example, of the project at `root`; `earlier` attempts were not ok.

    `width` None leaves long lines whole, for logs and grep.
    """
    style = status_style(result.status, strict=strict)
    refined = ", ".join(part for part in (result.cause, took(result)) if part)
    yield []
    yield [
        (status_words(result.status), style),
        (f"  {text.one_line(result.path)}", Style.BOLD),
        (f"  ({refined})" if refined else "", Style.DIM),
    ]
    for label, words in (*facts(result), *attempts(result, earlier)):
        kind = Style.LINK if label == "Advice" else Style.PLAIN
        yield from paragraph(f"{label}: {words}" if label else words, width, kind)
    if with_output:
        yield from _steps(result, width)
    # A blocked example never started, but its companion may have written why.
    if with_output and (result.attempts or result.output_tail):
        heading, lines = last_lines(result, root=root)
        yield [(f"{_INDENT}{heading}{':' if lines else ''}", Style.DIM)]
        for line in lines:
            for row in wrap(line, None if width is None else width - len(_INDENT) - 2):
                yield [(f"{_INDENT}│ ", Style.DIM), (row, Style.PLAIN)]
    for label, words in places(result):
        yield [(f"{_INDENT}{label + ':':<9}", Style.DIM), (words, Style.PLAIN)]


def _steps(result: Result, width: int | None) -> Iterator[Line]:
    """List the last steps that it told of, a line each."""
    heading, steps = last_steps(result, width=width)
    if steps:
        yield [(f"{_INDENT}{heading}:", Style.DIM)]
    for step in steps:
        line = [
            (f"{2 * _INDENT}{step.what}", _STEP_STYLES[step.outcome]),
            (f"{_INDENT}{step.took}", Style.DIM),
        ]
        columns = sum(text.cell_width(words) for words, _ in line) + len(_INDENT)
        why = step.why if width is None else cut(step.why, max(width - columns, 1))
        yield [*line, (f"{_INDENT}{why}", Style.PLAIN)] if why else line


def paragraph(words: str, width: int | None, style: Style) -> Iterator[Line]:
    """Wrap prose between words, with a hanging indent; its own lines are kept."""
    first, *others = words.split("\n")
    for row in _rows(first, width):
        yield [(row, style)]
    for line in others:
        yield [(f"{2 * _INDENT}{line}", style)]


def _rows(line: str, width: int | None) -> Iterator[str]:
    if width is None:
        yield f"{_INDENT}{line}"
        return
    row, indent = "", _INDENT
    for word in line.split(" "):
        joined = f"{row} {word}" if row else word
        if row and text.cell_width(indent + joined) > width:
            yield f"{indent}{row}"
            row, indent = word, 2 * _INDENT
        else:
            row = joined
    yield f"{indent}{row}"


def wrap(line: str, width: int | None) -> list[str]:
    """Break a line of output into rows of `width` columns; an overlong one loses its middle.

    >>> wrap("abcdefgh", 3)
    ['abc', 'def', 'gh']
    """
    if width is None:
        return [text.shorten(line, 1000)]
    rows = []
    rest = text.shorten(line, width * _MOST_ROWS_OF_A_LINE)
    while text.cell_width(rest) > width:
        end = _fitting(rest, width)
        rows.append(rest[:end])
        rest = rest[end:]
    return [*rows, rest]


def cut(words: str, width: int) -> str:
    """Cut at the end, which reads better in prose than a gap in the middle.

    >>> cut("port 8000 is taken", 10)
    'port 8000…'
    """
    if text.cell_width(words) <= width:
        return words
    return f"{words[: _fitting(words, width - 1)].rstrip()}…"


def share(room: int, example: int, note: int, least: int) -> tuple[int, int]:
    """Share out the room: three fifths for the example; who needs less leaves the rest.

    Before the note is cut, the example is, down to `least` columns.
    """
    if example + note <= room:
        return example, note
    example = max(room - note, min(least, example))
    if example + note <= room:
        return example, note
    most = room * 3 // 5
    if example <= most:
        return example, room - example
    if note <= room - most:
        return room - note, note
    return most, room - most


def _fitting(line: str, width: int) -> int:
    """Count the characters that fit into `width` columns; at least one."""
    used = 0
    for index, char in enumerate(line):
        used += text.cell_width(char)
        if used > width:
            return max(index, 1)
    return len(line)


def totals(state: RunState, *, strict: bool) -> Line:
    """Count the verdicts on one line."""
    line: list[Span] = []
    for status in _BY_WEIGHT:
        count = state.counts[status]
        if count:
            style = status_style(status, strict=strict)
            line += [(", " if line else "", Style.PLAIN), (f"{count:,} {status.value}", style)]
    words = "" if line else "nothing ran"
    return [*line, (f"{words} in {text.duration(state.now)}", Style.PLAIN)]


_BY_WEIGHT = (
    Status.PASSED,
    Status.SERVED,
    Status.FLAKY,
    Status.LEAKED,
    Status.FAILED,
    Status.TIMEOUT,
    Status.BLOCKED,
    Status.NOT_RUN,
    Status.SKIPPED,
)


def conclusion(state: RunState, *, strict: bool) -> Iterator[Line]:
    """Say that all is well, or what the totals leave open."""
    interruption = state.interruptions[-1] if state.interruptions else None
    unjudged = [each for each in state.results.values() if each.status is Status.NOT_RUN]
    # What was stopped in the middle is named first: it is often what hung.
    unjudged.sort(key=lambda result: (not result.attempts, result.path))
    pending = [result.path for result in unjudged]
    if pending:
        why = f"Interrupted by {interruption.signal}" if interruption else "Stopped early"
        names = ", ".join(text.one_line(path) for path in pending[:_MOST_NAMES])
        more = f" and {len(pending) - _MOST_NAMES:,} more" if len(pending) > _MOST_NAMES else ""
        yield [
            (f"{why}: ", Style.WARN),
            (
                f"{text.plural(len(pending), 'example')} without a verdict: {names}{more}",
                Style.PLAIN,
            ),
        ]
    elif interruption:
        yield [(f"Interrupted by {interruption.signal}.", Style.WARN)]
    elif state.selected and all_passed(state.counts, strict=strict):
        remark = _remark(state)
        yield [(remark, Style.WARN) if remark else ("All examples passed", Style.OK)]


def _remark(state: RunState) -> str:
    """Say what is not quite well about a green run; empty where every example passed."""
    if nothing_to_remark(state.counts):
        return ""
    leaked, flaky = state.counts[Status.LEAKED], state.counts[Status.FLAKY]
    said = [f"{text.plural(leaked, 'example')} leaked"] if leaked else []
    if flaky:
        said.append(f"{text.plural(flaky, 'example')} {'was' if flaky == 1 else 'were'} flaky")
    such = "that as a failure" if leaked + flaky == 1 else "those as failures"
    return f"No failures, but {' and '.join(said)} (--strict counts {such})"


def passive_files(plan: Plan) -> Iterator[Line]:
    """Say how many files look like scripts and were left out, since they would do nothing."""
    count = sum(
        file.path.endswith(".py") and file.reason.startswith(_PASSIVE) for file in plan.not_examples
    )
    if count:
        verbs = "imports and defines, and is no example"
        if count > 1:
            verbs = "import and define, and are no examples"
        words = f"{text.plural(count, 'file')} only {verbs}: see `e2e-run list`"
        yield [(words, Style.DIM)]


def nothing_selected(plan: Plan, *, paths: Sequence[Path], root: Path) -> Iterator[Line]:
    """Say why nothing ran, and what to do."""
    if plan.cut is not None and plan.last_failed:
        yield [("Nothing is outstanding in this shard.", Style.PLAIN)]
        return
    if plan.cut is not None:
        yield [("There are more shards than examples: none is in this one.", Style.PLAIN)]
        return
    names = [f'"{text.one_line(relative(str(path), root))}"' for path in paths]
    where = ", ".join(names) or "the project"
    yield [("No example was selected", Style.WARN), (f" in {where}.", Style.PLAIN)]
    if plan.deselected:
        left_out = text.plural(len(plan.deselected), "example")
        yield from _reasons(f"{left_out} skipped", (out.reason for out in plan.deselected))
    if plan.not_examples:
        files = text.plural(len(plan.not_examples), "file")
        verb = "is no example" if len(plan.not_examples) == 1 else "are no examples"
        yield from _reasons(f"{files} {verb}", (file.reason for file in plan.not_examples))
    if not plan.deselected and not plan.not_examples:
        words = "No *.py was found there. `include` of the configuration names other scripts,"
        yield [(f"{_INDENT}{words}", Style.PLAIN)]
        yield [(f'{_INDENT}as in include = ["*.sh"].', Style.PLAIN)]
    yield [("To fix this: name a file, which then always runs, or another folder;", Style.PLAIN)]
    yield [("`e2e-run list` shows every file with the reason.", Style.PLAIN)]


def _reasons(what: str, reasons: Iterable[str]) -> Iterator[Line]:
    """Group equal reasons, the most frequent first."""
    yield [(f"{_INDENT}{what}:", Style.PLAIN)]
    groups = Counter(reasons).most_common()
    for reason, count in groups[:_MOST_NAMES]:
        yield [(f"{count:>8,}  {text.one_line(reason)}", Style.DIM)]
    others = sum(count for _, count in groups[_MOST_NAMES:])
    if others:
        yield [(f"{others:>8,}  other reasons", Style.DIM)]


def skipped_groups(reasons: Sequence[str]) -> Iterator[Line]:
    """Say what was left out, grouped by reason, where naming each would bury the rest."""
    yield from _reasons(f"{text.plural(len(reasons), 'example')} skipped", reasons)
