"""What ``-v`` says while an example runs, an event at a time. Pure."""

from collections.abc import Iterator
from typing import assert_never

from e2e_runner import text
from e2e_runner.events import (
    AttemptFinished,
    ExampleStarted,
    MetricReported,
    PhaseChanged,
    StepFinished,
    StepStarted,
)
from e2e_runner.report.evidence import flat, metric_words
from e2e_runner.report.style import Line, Style

_DEEPEST = 5  # steps within steps that are still indented

Progress = (
    ExampleStarted | PhaseChanged | StepStarted | StepFinished | MetricReported | AttemptFinished
)


def progress(event: Progress) -> Iterator[Line]:
    """Say what an example does now. A step that ended well needs no line: its next one says so."""
    words = _words(event)
    if words:
        at = f"{text.duration(event.at):>7}  "
        yield [(f"{at}{text.one_line(_path(event))}: {words}", Style.DIM)]


def _path(event: Progress) -> str:
    return event.result.path if isinstance(event, AttemptFinished) else event.path


def _words(event: Progress) -> str:
    match event:
        case ExampleStarted():
            nth = f" again (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"started{nth}, at most {text.limit(event.limit)}"
        case PhaseChanged():
            detail = f" ({text.one_line(event.detail)})" if event.detail else ""
            return f"{event.phase.value}{detail}"
        case AttemptFinished():
            return _attempt_words(event)
        case _:
            return _story_words(event)


def _attempt_words(event: AttemptFinished) -> str:
    result = event.result
    reason = f" ({flat(result.reason)})" if result.reason else ""
    return f"attempt {event.number}: {result.status.value}{reason}; once more: {flat(event.again)}"


def _story_words(event: StepStarted | StepFinished | MetricReported) -> str:
    match event:
        case StepStarted():
            section = f" ({flat(event.section)})" if event.section and not event.depth else ""
            return f"{_indent(event.depth)}▸ {flat(event.title)}{section}"
        case StepFinished():
            if not event.error:
                return ""
            mark = "-" if event.cancelled else "✗"
            took = text.duration(event.duration)
            words = f"{mark} {flat(event.title)} ({took}): {flat(event.error)}"
            return _indent(event.depth) + words
        case MetricReported():
            return metric_words(event.metric)
        case _:
            assert_never(event)


def _indent(depth: int) -> str:
    return "  " * min(depth, _DEEPEST)
