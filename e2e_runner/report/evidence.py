"""The evidence on one example, in words: what every human-readable report says about it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from e2e_runner import text
from e2e_runner.events import AttemptFinished
from e2e_runner.model import (
    Leak,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    Metric,
    NetworkMode,
    NetworkTier,
    Result,
    Status,
    Step,
    StepOutcome,
)
from e2e_runner.report.screen import render
from e2e_runner.report.tracebacks import Shown, fold, last_error
from e2e_runner.state import RunState
from e2e_runner.verdict import JUDGED_CAUSES

_OUTPUT_LINES = 20
_MOST_LEAKS = 10
_MOST_STEPS = 5
_LONGEST_TITLE = 40  # columns, with the indent of a step within others
_SHORTEST_TITLE = 12
_BESIDE_TITLE = 24  # columns for what stands beside it
_STEP_MARKS = {StepOutcome.OK: "✓", StepOutcome.FAILED: "✗", StepOutcome.UNFINISHED: "▸"}
_RAN_WELL = {Status.PASSED, Status.SERVED, Status.FLAKY, Status.LEAKED}
# What a verdict says of a script that ended, or was stopped, in a step.
_IN_STEP = re.compile(r'(?P<how>.*?),? in step "(?P<title>.*)"(?: \(for [^()]*\))?')
_AFTER = "timed out "
_TYPE = re.compile(r"[A-Za-z_][\w.]*: ")
_USUAL_FAILURE = "exit code 1"  # as every exception of Python's


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWords:
    """One step in words, its columns padded so that several stand below each other."""

    what: str  # its mark and title
    took: str
    why: str  # why it failed; empty when it did not
    outcome: StepOutcome


def leak_words(leak: Leak, *, databases_dropped: bool = True) -> str:
    """Name one thing that was left behind, and say what became of it.

    `databases_dropped` says that those which nothing kept are gone: `--keep-databases` keeps the
    servers of examples that failed.

    >>> leak_words(LeakedProcess(pid=7, command="uvicorn app:app", ports=(8000,)))
    'process 7 (uvicorn app:app), listening on port 8000: killed'
    >>> leak_words(LeakedDatabase(name="archive")), leak_words(LeakedPort(port=8000))
    ('database archive: dropped', 'port 8000: still taken')
    """
    match leak:
        case LeakedProcess():
            name = "a process" if leak.pid is None else f"process {leak.pid}"
            words = f"{name} ({text.one_line(leak.command)})"
            if leak.ports:
                noun = "port" if len(leak.ports) == 1 else "ports"
                words += f", listening on {noun} {', '.join(map(str, leak.ports))}"
            return f"{words}: {'perhaps still there: ' + leak.kept if leak.kept else 'killed'}"
        case LeakedPort():
            owner = f", held by {text.one_line(leak.owner)}" if leak.owner else ""
            return f"port {leak.port}{owner}: still taken"
        case LeakedDatabase():
            owner = f", owned by {text.one_line(leak.owner)}" if leak.owner else ""
            doubt = f"; {text.one_line(leak.doubt)}" if leak.doubt else ""
            fate = "; dropped" if doubt or owner else ": dropped"
            if leak.kept:
                fate = f"; not dropped: {text.one_line(leak.kept)}"
            elif not databases_dropped:
                fate = ""
            return f"database {text.one_line(leak.name)}{owner}{doubt}{fate}"
        case _:
            assert_never(leak)


def last_lines(
    result: Result, *, most: int | None = _OUTPUT_LINES, root: Path | None = None
) -> tuple[str, list[str]]:
    """Give the end of the output as a terminal would show it, and a heading that says what it is.

    At most `most` lines; None is all that was kept. Output that a terminal would show nothing of gives
    no lines. With a `root`, frames of tracebacks that lie outside this project are folded.
    """
    whole = render(result.output_tail)
    while whole and not whole[0]:
        whole.pop(0)
    shown = [Shown(line=line) for line in whole] if root is None else fold(whole, root)
    left = 0 if most is None else max(len(shown) - most, 0)
    earlier = sum(each.count for each in shown[:left])
    lines = [each.line for each in shown[left:]]
    if not lines:
        return "It wrote no output", []
    if not earlier and not result.output_cut:
        return "Output", lines
    if result.output_cut:
        left_out = (
            f"more than {text.plural(earlier, 'earlier line')}" if earlier else "earlier output"
        )
    else:
        left_out = text.plural(earlier, "earlier line")
    place = "in the log" if result.log else "not shown"
    last = text.plural(len(whole) - earlier, "line")
    return f"Output, its last {last} (… {left_out} {place})", lines


def facts(result: Result) -> list[tuple[str, str]]:
    """Give what is known besides the output, as label and text; the reason comes first.

    The text may have lines: advice may quote what to write into a file.
    """
    found: list[tuple[str, str]] = []
    names_leaks_only = result.status is Status.LEAKED and result.leaks
    if result.reason and not names_leaks_only:
        found.append(("", _safe_lines(result.reason)))
    advice = [("Advice", _safe_lines(hint)) for hint in result.hints]
    if not names_leaks_only:
        found += advice
    # A port is named with the process that listens on it.
    told = {port for k in result.leaks if isinstance(k, LeakedProcess) for port in k.ports}
    leaks = [k for k in result.leaks if not (isinstance(k, LeakedPort) and k.port in told)]
    gone = result.status in _RAN_WELL
    found += [
        ("Left behind", leak_words(leak, databases_dropped=gone)) for leak in leaks[:_MOST_LEAKS]
    ]
    if len(leaks) > _MOST_LEAKS:
        found.append(("Left behind", f"and {len(leaks) - _MOST_LEAKS:,} more"))
    if names_leaks_only:
        found += advice
    if failed := failed_steps(result):
        found.append(("Note", failed))
    if result.isolation_suspect and result.network is NetworkMode.ISOLATED:
        why = _safe_lines(result.isolation_suspect)
        found.append(("Note", f"it ran in a network of its own, which may be why: {why}"))
    found += [("Note", _safe_lines(note)) for note in result.notes]
    if result.output_dropped:
        dropped = text.size(result.output_dropped)
        found.append(("Note", f"{dropped} from the middle of the output were dropped"))
    return found


def last_steps(result: Result, *, width: int | None = None) -> tuple[str, list[StepWords]]:
    """Give the last steps that it told of and a heading; the one in which it happened comes last.

    `width` is that of the terminal in columns, in which the titles leave room for what else is said.
    """
    steps = list(result.steps)
    if result.happened_in is not None:
        steps.append(steps.pop(result.happened_in))
    earlier = max(len(steps) - _MOST_STEPS, 0)
    steps = steps[earlier:]
    if not steps:
        return "", []
    heading = f"Steps, the last {_MOST_STEPS} of {len(result.steps):,}" if earlier else "Steps"
    outermost = min(step.depth for step in steps)
    room = _LONGEST_TITLE
    if width is not None:
        room = min(room, max(width - _BESIDE_TITLE, _SHORTEST_TITLE))
    named = [_step_title(step, outermost, room) for step in steps]
    times = [text.duration(step.duration) for step in steps]
    name_width, time_width = max(map(text.cell_width, named)), max(map(len, times))
    return heading, [
        StepWords(
            what=name + " " * (name_width - text.cell_width(name)),
            took=f"{time:>{time_width}}",
            why=_step_end(step),
            outcome=step.outcome,
        )
        for step, name, time in zip(steps, named, times, strict=True)
    ]


def _step_title(step: Step, outermost: int, room: int) -> str:
    indent = "  " * min(step.depth - outermost, _MOST_STEPS)
    title = text.shorten(flat(step.title), room - len(indent))
    return f"{indent}{_STEP_MARKS[step.outcome]} {title}"


def _step_end(step: Step) -> str:
    said = flat(step.error)
    return said or "unfinished" if step.outcome is StepOutcome.UNFINISHED else said


def note(result: Result) -> str:
    """Give the one line on a result: the reason, after a cause that tells more than it does.

    Before it stands how many of the repeats passed. Of what ended well it goes on with what it told of
    itself.
    """
    return _joined(repeats(result), _note(result))


def _note(result: Result) -> str:
    told = result.status in {Status.FAILED, Status.TIMEOUT} and result.cause not in JUDGED_CAUSES
    reason = flat(result.reason)
    if told and result.cause is not None:
        return ": ".join(part for part in (text.one_line(result.cause), reason) if part)
    if result.status not in _RAN_WELL:
        return reason
    metrics = ", ".join(map(metric_words, result.metrics))
    return _joined(reason, failed_steps(result), metrics)


def brief(result: Result) -> str:
    """Give the note on a result where its status stands beside it: first what that does not say."""
    return _joined(repeats(result), _brief(result))


def _brief(result: Result) -> str:
    if result.status is Status.LEAKED:
        return _note(result).removeprefix("left behind: ")
    if result.status not in {Status.FAILED, Status.TIMEOUT}:
        return _note(result).removeprefix("the run was ")
    how, title = flat(result.reason), ""
    if result.happened_in is not None and (found := _IN_STEP.fullmatch(how)):
        how, title = found["how"], found["title"]
    how = "" if how == _USUAL_FAILURE or (title and how.startswith(_AFTER)) else how
    how = how.removeprefix(_AFTER)
    cause = "" if result.cause in {None, *JUDGED_CAUSES} else text.one_line(result.cause or "")
    place = f'in "{title}"' if title else ""
    error = flat(_error(result)) if result.status is Status.FAILED else ""
    if cause:
        error = _TYPE.sub("", error)  # the cause says as much
    lead = " ".join(part for part in (cause or how, place) if part)
    words = [lead, how if cause else "", error]
    return ": ".join(part for part in words if part) or _note(result)


def _error(result: Result) -> str:
    """Give the first line of the error that a script failed by; empty where it is not known."""
    if result.happened_in is not None and (error := result.steps[result.happened_in].error):
        return error
    return last_error(render(result.output_tail))


def failed_steps(result: Result) -> str:
    """Say that steps failed though the script ended well; empty where none did."""
    failed = sum(step.outcome is StepOutcome.FAILED for step in result.steps)
    if not failed or result.status not in _RAN_WELL:
        return ""
    ended = "it passed" if result.exit_code is None else f"it exited {result.exit_code}"
    return f"{text.plural(failed, 'step')} failed, yet {ended}"


def metric_words(metric: Metric) -> str:
    """Give a metric in words: its value as it was told, fractions to six digits.

    >>> metric_words(Metric(name="ratio", value=0.1234567)), metric_words(Metric(name="n", value=10000))
    ('ratio: 0.123457', 'n: 10,000')
    """
    value = metric.value
    match value:
        case bool():
            words = "yes" if value else "no"
        case int():
            words = f"{value:,}"
        case float():
            words = f"{value:,.6g}"
        case str():
            words = flat(value)
        case _:
            assert_never(value)
    return f"{flat(metric.name)}: {words}"


def whereabouts(result: Result, state: RunState) -> str:
    """Say that it ran on the host's network where others had one of their own; else empty."""
    others_have = state.run is not None and state.run.network is not NetworkTier.HOST
    if result.network is not NetworkMode.HOST or not others_have:
        return ""
    told = [each.result for each in state.failed_attempts(result.path)]
    why = next((each.isolation_suspect for each in (result, *told) if each.isolation_suspect), "")
    return f"on the host network ({flat(why)})" if why else "on the host network"


def made_alone(result: Result) -> str:
    """Say that what is ok was not beside others; empty where it never was made again alone."""
    if result.status not in _RAN_WELL:
        return ""
    begins = f"{result.status.value} alone"
    told = next((each for each in result.notes if each.startswith(begins)), "")
    return flat(told).removeprefix(f"{result.status.value} ")


def repeats(result: Result) -> str:
    """Say how many of the repeats passed; empty without ``--repeat``."""
    return f"{result.repeats_passed} of {result.repeats} passed" if result.repeats > 1 else ""


def attempts(result: Result, earlier: Iterable[AttemptFinished]) -> list[tuple[str, str]]:
    """Give the earlier attempts that were not ok and whose evidence is elsewhere, as label and text."""
    found = []
    for attempt in earlier:
        each = attempt.result
        if each.log is not None and each.log == result.log:
            continue
        took = text.duration(each.duration) if each.attempts else ""
        refined = ", ".join(part for part in (each.cause, took) if part)
        words = each.status.value + (f" ({text.one_line(refined)})" if refined else "")
        words += f": {flat(each.reason)}" if each.reason else ""
        words += f"; its log: {text.one_line(each.log)}" if each.log else ""
        found.append((f"Attempt {attempt.number}", words))
    return found


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def flat(words: str) -> str:
    """Put several lines on one, and make them safe to print."""
    return " ".join(text.one_line(line.strip()) for line in words.splitlines())


def _safe_lines(words: str) -> str:
    return "\n".join(text.one_line(line.rstrip()) for line in words.splitlines())


def places(result: Result) -> list[tuple[str, str]]:
    """Give where to look on and what to run, as label and text."""
    found: list[tuple[str, str]] = []
    if result.log:
        found.append(("Log", text.one_line(result.log)))
    if result.command:
        found.append(("By hand", text.one_line(result.command)))
    return found
