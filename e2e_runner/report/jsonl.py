"""The ``jsonl`` report: each event on a line of its own, as it happens."""

from e2e_runner.events import Event
from e2e_runner.report.shape import event_shape, to_json
from e2e_runner.report.targets import OpenTarget, describe_write_error
from e2e_runner.state import RunState


class JsonlReporter:
    """Writes every event at once; the first refusal by the disk or pipe ends the report."""

    def __init__(self, target: OpenTarget) -> None:
        self.problems: list[str] = []
        self._target = target

    def handle(self, event: Event, state: RunState) -> None:
        """Write the event, unless the report has ended."""
        if self.problems:
            return
        try:
            self._target.append(to_json(event_shape(event, state)).encode("ascii") + b"\n")
        except OSError as error:
            self.problems.append(describe_write_error(self._target, error))

    def close(self) -> None:
        """Release the file."""
        self._target.close()
