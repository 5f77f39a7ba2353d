"""What the records of one script add up to: its steps, its metrics, and the step that it is in. Pure.

Records are claims. They come from several processes at once, repeat themselves, begin without an end
and end without a beginning; whatever they say, what is given here is consistent and bounded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from e2e_runner import text
from e2e_runner.events import MetricReported, StepFinished, StepStarted
from e2e_runner.model import Metric, Step, StepOutcome
from e2e_runner.records import (
    MetricTold,
    Record,
    SectionBegan,
    StepBegan,
    StepEnded,
    SummaryTold,
)

MOST_STEPS = 1000
MOST_METRICS = 200

Told: TypeAlias = StepStarted | StepFinished | MetricReported


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that a script told, once it is over. `happened_in` is the place in `steps`, if any."""

    steps: tuple[Step, ...]
    happened_in: int | None
    metrics: tuple[Metric, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A step with its place in what is kept; None beyond `MOST_STEPS`."""

    step: Step
    index: int | None


class Narration:
    """Adds up the records of the script of the example `path`.

    `started` is when it was started, on the clock of the records. The seconds given to the methods
    count from there; a time that a record claims is taken within them.
    """

    def __init__(self, path: str, *, started: float) -> None:
        self._path = path
        self._started = started
        self._section = ""
        self._summary = ""
        self._count = 0  # of steps
        self._steps: list[Step] = []
        self._open: dict[int, _Begun] = {}  # in the order in which they began
        # Those that did not come to their end since the last step began, in the order in which they
        # broke off.
        self._broken: list[_Begun] = []
        self._metrics: dict[str, Metric] = {}
        self._other_metrics = 0  # told beyond `MOST_METRICS`
        self._stopped = False
        self._stopped_in: _Begun | None = None

    def add(self, records: Iterable[Record], *, now: float, at: float) -> list[Told]:
        """Take records into account, and give the events that say so, at the time `at` of the run."""
        told: list[Told] = []
        metrics: dict[str, MetricReported] = {}
        for record in records:
            match record:
                case SectionBegan():
                    self._section = record.title
                case StepBegan():
                    told += self._begin(record, now=now, at=at)
                case StepEnded():
                    told += self._end(record, now=now, at=at)
                case MetricTold():
                    if self._note_metric(record):
                        metric = self._metrics[record.name]
                        metrics[record.name] = MetricReported(at=at, path=self._path, metric=metric)
                case SummaryTold():
                    self._summary = record.text
                case _:
                    assert_never(record)
        return [*told, *metrics.values()]

    def stop(self, now: float) -> None:
        """Note that the script is being stopped: what it was in stays unfinished, whatever it tells."""
        self._stopped = True
        self._stopped_in = self._innermost_open(now)
        for begun in self._open.values():
            self._keep(_until(begun, now))
        self._open.clear()

    @property
    def has_steps(self) -> bool:
        """Whether the script has told of a step."""
        return self._count > 0

    def place(self, elapsed: float) -> Step | None:
        """Give the step in which it failed or was stopped, after `elapsed` seconds.

        That is the one it was in, or else the failed one that no other step came after: of several
        around each other the innermost, of those beside each other the first. One that was cancelled
        before, as by a time limit around it, is where that happened.
        """
        begun = self._place(elapsed)
        return None if begun is None else begun.step

    def notes(self) -> list[str]:
        """Say what is not kept."""
        notes = []
        if self._count > MOST_STEPS:
            notes.append(f"told of {self._count:,} steps: the first {MOST_STEPS:,} are kept")
        if self._other_metrics:
            notes.append(
                f"told more than {MOST_METRICS} metrics: {text.plural(self._other_metrics, 'value')}"
                " of others are left out"
            )
        return notes

    def end(self, elapsed: float, *, ended_well: bool) -> Story:
        """Close what it left open: it lasted to the end, and was fine if the script ended well."""
        begun = None if ended_well else self._place(elapsed)
        for each in self._open.values():
            last = _until(each, elapsed)
            outcome = StepOutcome.OK if ended_well else StepOutcome.UNFINISHED
            self._keep(replace(last, step=replace(last.step, outcome=outcome)))
        steps = list(self._steps)
        index = None if begun is None else begun.index
        if begun is not None and index is None:
            index = len(steps)
            steps.append(begun.step)
        return Story(
            steps=tuple(_within(step, elapsed) for step in steps),
            happened_in=index,
            metrics=tuple(self._metrics.values()),
            summary=self._summary,
        )

    def _begin(self, record: StepBegan, *, now: float, at: float) -> list[Told]:
        # Whoever uses one number for all steps means that the one before is over.
        told = self._end(StepEnded(at=record.at, step=record.step), now=now, at=at)
        self._count += 1
        self._broken.clear()
        if len(self._open) >= MOST_STEPS:
            return told
        around = None if record.within is None else self._open.get(record.within)
        step = Step(
            title=record.title.strip() or "untitled",
            started=self._seconds(record.at, now),
            duration=0.0,
            outcome=StepOutcome.UNFINISHED,
            depth=0 if around is None else around.step.depth + 1,
            section=self._section,
        )
        index = len(self._steps)
        if index >= MOST_STEPS:
            self._open[record.step] = _Begun(step=step, index=None)
            return told
        self._open[record.step] = _Begun(step=step, index=index)
        self._steps.append(step)
        return [
            *told,
            StepStarted(
                at=at,
                path=self._path,
                step=index,
                title=step.title,
                depth=step.depth,
                section=step.section,
            ),
        ]

    def _end(self, record: StepEnded, *, now: float, at: float) -> list[Told]:
        begun = self._open.pop(record.step, None)
        if begun is None:
            return []
        step = replace(
            _until(begun, self._seconds(record.at, now)).step,
            outcome=_outcome(record),
            error=record.error,
        )
        ended = replace(begun, step=step)
        self._keep(ended)
        if step.outcome is not StepOutcome.OK:
            self._broken.append(ended)
        if ended.index is None:
            return []
        return [
            StepFinished(
                at=at,
                path=self._path,
                step=ended.index,
                title=step.title,
                depth=step.depth,
                duration=step.duration,
                error=step.error,
                cancelled=record.cancelled,
            )
        ]

    def _note_metric(self, record: MetricTold) -> bool:
        known = self._metrics.get(record.name)
        if known is None and len(self._metrics) >= MOST_METRICS:
            self._other_metrics += 1
            return False
        metric = Metric(name=record.name, value=record.value)
        self._metrics[record.name] = metric
        return metric != known

    def _place(self, elapsed: float) -> _Begun | None:
        if self._stopped:
            return self._stopped_in
        return self._innermost_open(elapsed) or _origin(self._broken)

    def _innermost_open(self, now: float) -> _Begun | None:
        """Give the open step that began last: whatever is around it began before."""
        begun = next(reversed(self._open.values()), None)
        return None if begun is None else _until(begun, now)

    def _keep(self, begun: _Begun) -> None:
        if begun.index is not None:
            self._steps[begun.index] = begun.step

    def _seconds(self, at: float, now: float) -> float:
        return min(max(at - self._started, 0.0), max(now, 0.0))


def _outcome(record: StepEnded) -> StepOutcome:
    if record.cancelled:
        return StepOutcome.UNFINISHED
    return StepOutcome.FAILED if record.error else StepOutcome.OK


def _origin(broken: Sequence[_Begun]) -> _Begun | None:
    """Give the step that a failure came from, of those that broke off, in the order of their ends."""
    failed = [each for each in broken if each.step.outcome is StepOutcome.FAILED]
    first = max(failed, key=lambda each: each.step.depth, default=None)
    if first is None:
        return max(broken, key=lambda each: each.step.depth, default=None)
    # What is cancelled later is so for the failure.
    inside = [each for each in broken[: broken.index(first)] if each.step.depth > first.step.depth]
    return max(inside, key=lambda each: each.step.depth, default=first)


def _until(begun: _Begun, end: float) -> _Begun:
    step = begun.step
    return replace(begun, step=replace(step, duration=max(end - step.started, 0.0)))


def _within(step: Step, elapsed: float) -> Step:
    """Take a step within the life of the script, which what it left behind may have outlived."""
    if step.started + step.duration <= elapsed:
        return step
    started = min(step.started, elapsed)
    return replace(step, started=started, duration=min(step.duration, elapsed - started))
