"""Whoever hears of a run while it goes on: its state, the reporters and the history."""

from collections.abc import Sequence

from e2e_runner.events import Event, RunFinished, Warned
from e2e_runner.model import RunSettings
from e2e_runner.recorder import Recorder
from e2e_runner.report import Reporter
from e2e_runner.state import RunState


class Listeners:
    """Hands each event of a run on. `told` is given the exit code once all have heard the last one."""

    def __init__(self, reporters: Sequence[Reporter], told: list[int]) -> None:
        self._reporters = reporters
        self._told = told
        self._state = RunState()
        self._recorder: Recorder | None = None

    def record(self, run: RunSettings) -> None:
        """Keep what is to come in the history."""
        self._recorder = Recorder(run.state_dir, warn=self._warn)

    def emit(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, RunFinished):
            self._report(event)
            self._keep(event)
        else:
            self._keep(event)  # what the history has to say comes before the end
            self._report(event)
            self._told.append(event.exit_code)

    def close(self) -> None:
        """Finish everything, also when the run broke off."""
        if self._recorder is not None:
            self._recorder.close()
        for reporter in self._reporters:
            reporter.close()

    def _keep(self, event: Event) -> None:
        if self._recorder is not None:
            self._recorder.handle(event)

    def _report(self, event: Event) -> None:
        self._state.apply(event)
        for reporter in self._reporters:
            reporter.handle(event, self._state)

    def _warn(self, message: str) -> None:
        self._report(Warned(at=self._state.now, message=message))
