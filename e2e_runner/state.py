"""The state of a run: what the events so far add up to.

One consumer owns it: it applies each event, then hands event and state to the reporters in order.
Every event costs the same however long the run is. Of an example that finished its result is kept, and
the last few of its earlier attempts that were not ok.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from e2e_runner.events import (
    AttemptFinished,
    Event,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    MetricReported,
    OutputWritten,
    Phase,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import Deselected, Plan, Result, RunInfo, Status
from e2e_runner.verdict import is_bad

_MOST_ATTEMPTS = 5  # of an example, as with --repeat 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStep:
    """A step that a running example is in. `since` is on the scale of the events."""

    step: int  # its place among the steps of the example
    title: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An example that has its turn. `since` and `phase_since` are on the scale of the events."""

    path: str
    since: float
    limit: float
    attempt: int = 1
    phase: Phase | None = None
    phase_since: float
    detail: str = ""
    steps: tuple[OpenStep, ...] = ()  # that it told of and is in, in the order in which they began

    @property
    def step(self) -> OpenStep | None:
        """The innermost step that it is in."""
        return self.steps[-1] if self.steps else None


class RunState:
    """What is known of a run. `now` is the time of the last event, in seconds since the start.

    Examples that the plan left out on purpose have a `skipped` result from the start; an event with
    another result for the same path replaces it, so the totals never count an example twice.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.run: RunInfo | None = None
        self.plan = Plan(examples=())
        self.running: dict[str, Running] = {}
        self.warnings: list[Warned] = []
        self.interruptions: list[Interrupted] = []
        self.finished: RunFinished | None = None
        self.done = 0  # examples of the plan that have a verdict
        self._attempts: dict[str, tuple[AttemptFinished, ...]] = {}
        self._results: dict[str, Result] = {}
        self._counts = dict.fromkeys(Status, 0)

    @property
    def results(self) -> Mapping[str, Result]:
        """Results by path, in the order in which they came."""
        return self._results

    @property
    def counts(self) -> Mapping[Status, int]:
        """Count of results by status; every status has an entry."""
        return self._counts

    @property
    def selected(self) -> int:
        """Number of examples that the plan means to run."""
        return len(self.plan.examples)

    def failed_attempts(self, path: str) -> tuple[AttemptFinished, ...]:
        """Give the earlier attempts at an example that were not ok; of many, the last few."""
        return self._attempts.get(path, ())

    def apply(self, event: Event) -> None:
        """Take one event into account."""
        self.now = event.at
        match event:
            case RunStarted():
                self._start(event)
            case ExampleStarted():
                self.running[event.path] = Running(
                    path=event.path,
                    since=event.at,
                    limit=event.limit,
                    attempt=event.attempt,
                    phase_since=event.at,
                )
            case PhaseChanged():
                self._enter(event)
            case StepStarted() | StepFinished():
                self._step(event)
            case OutputWritten() | MetricReported():
                pass
            case AttemptFinished():
                self._try(event)
            case ExampleFinished():
                self._finish(event.result)
            case Warned() | Interrupted():
                self._keep(event)
            case RunFinished():
                self.running.clear()
                self.finished = event
            case _:
                assert_never(event)

    def _start(self, event: RunStarted) -> None:
        self.run = event.run
        self.plan = event.plan
        for deselected in event.plan.deselected:
            self._record(skipped_result(deselected))

    def _try(self, event: AttemptFinished) -> None:
        path = event.result.path
        self.running.pop(path, None)
        if is_bad(event.result.status, strict=False):
            self._attempts[path] = (*self.failed_attempts(path), event)[-_MOST_ATTEMPTS:]

    def _finish(self, result: Result) -> None:
        self.running.pop(result.path, None)
        self.done += 1
        self._record(result)

    def _keep(self, event: Warned | Interrupted) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event)
        else:
            self.interruptions.append(event)

    def _enter(self, event: PhaseChanged) -> None:
        running = self.running.get(event.path)
        if running is not None:
            self.running[event.path] = replace(
                running, phase=event.phase, phase_since=event.at, detail=event.detail
            )

    def _step(self, event: StepStarted | StepFinished) -> None:
        running = self.running.get(event.path)
        if running is None:
            return
        if isinstance(event, StepStarted):
            begun = OpenStep(step=event.step, title=event.title, since=event.at)
            steps = (*running.steps, begun)
        else:
            steps = tuple(each for each in running.steps if each.step != event.step)
        self.running[event.path] = replace(running, steps=steps)

    def _record(self, result: Result) -> None:
        earlier = self._results.get(result.path)
        if earlier is not None:
            self._counts[earlier.status] -= 1
        self._results[result.path] = result
        self._counts[result.status] += 1


def skipped_result(deselected: Deselected) -> Result:
    """Give the result of an example that the plan left out."""
    example = deselected.example
    return Result(
        path=example.path,
        status=Status.SKIPPED,
        reason=deselected.reason,
        tags=example.settings.tags,
        ports=example.ports,
    )
