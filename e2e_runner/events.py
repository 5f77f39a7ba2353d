"""What happens during a run, as a closed set of frozen event types.

Events are the only way in which the engine speaks to the rest of the program. ``at`` is in seconds
since the run started, on the monotonic clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from e2e_runner.model import Metric, Plan, Result, RunInfo


class Phase(StrEnum):
    """What an example is doing now."""

    WAITING_FOR_PORT = "waiting for port"
    DATABASES = "preparing databases"
    COMPANIONS = "starting companions"
    RUNNING = "running"
    STARTING = "waiting until ready"
    STOPPING = "stopping"
    KILLING = "killing"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The plan is made and the environment is set up; the first event of every run."""

    at: float
    run: RunInfo
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleStarted:
    """An example has its turn. `limit` is its timeout in seconds; `attempt` counts from 1."""

    at: float
    path: str
    limit: float
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """A running example entered another phase; `detail` says more ("port 8000, held by pid 12")."""

    at: float
    path: str
    phase: Phase
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputWritten:
    """A script wrote output; emitted only with ``--no-capture``."""

    at: float
    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A running example told that a step began.

    `step` is its place among the steps of the example, from 0; `depth` counts the steps around it.
    """

    at: float
    path: str
    step: int
    title: str
    depth: int = 0
    section: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A running example told that a step ended. `error` is empty when it came to its end.

    One that was `cancelled` did not fail.
    """

    at: float
    path: str
    step: int
    title: str
    depth: int = 0
    duration: float
    error: str = ""
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReported:
    """A running example told a figure."""

    at: float
    path: str
    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """An attempt at an example ended that is not the last one; `again` says why there is another.

    `number` counts from 1; `result` is the verdict on this attempt alone.
    """

    at: float
    number: int
    result: Result
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFinished:
    """The verdict on one example. Every example of the plan gets exactly one, not-run included."""

    at: float
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that a person should know and that changes no verdict."""

    at: float
    message: str
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A signal asked the run to end; `count` 1 stops with grace, 2 kills now."""

    at: float
    signal: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last event of every run."""

    at: float
    exit_code: int
    interrupted: bool


Event = (
    RunStarted
    | ExampleStarted
    | PhaseChanged
    | OutputWritten
    | StepStarted
    | StepFinished
    | MetricReported
    | AttemptFinished
    | ExampleFinished
    | Warned
    | Interrupted
    | RunFinished
)
