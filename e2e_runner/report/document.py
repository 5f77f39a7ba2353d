"""A report that is one document, written when the run is over."""

from collections.abc import Callable, Iterable

from e2e_runner.events import Event, RunFinished
from e2e_runner.report.targets import OpenTarget, describe_write_error
from e2e_runner.state import RunState

Renderer = Callable[[RunState], Iterable[str]]


class DocumentReporter:
    """Writes what `render` makes of the final state.

    A run that breaks off without its last event is written when the reporter is closed, with what is
    known by then.
    """

    def __init__(self, target: OpenTarget, render: Renderer) -> None:
        self.problems: list[str] = []
        self._target = target
        self._render = render
        self._state: RunState | None = None
        self._written = False

    def handle(self, event: Event, state: RunState) -> None:
        """Remember the state; write once the run is over."""
        self._state = state
        if isinstance(event, RunFinished):
            self._write(state)

    def close(self) -> None:
        """Write what is known if the run broke off, and release the file."""
        if self._state is not None and not self._written:
            self._write(self._state)
        self._target.close()

    def _write(self, state: RunState) -> None:
        self._written = True
        try:
            self._target.replace(self._render(state))
        except OSError as error:
            self.problems.append(describe_write_error(self._target, error))
