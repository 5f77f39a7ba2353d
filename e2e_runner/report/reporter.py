"""What every reporter is."""

from collections.abc import Sequence
from typing import Protocol

from e2e_runner.events import Event
from e2e_runner.state import RunState


class Reporter(Protocol):
    """Tells someone of a run. It never raises for what happens at its far end."""

    @property
    def problems(self) -> Sequence[str]:
        """What went wrong while writing, a message each; the report is then not whole."""

    def handle(self, event: Event, state: RunState) -> None:
        """Take one event; `state` has it applied already. Cheap: it is called in the hot path."""

    def close(self) -> None:
        """Finish and release everything. Called once, after the last event or instead of it."""
