"""How the engine tells of events: in order, and not while somebody waits for the next start."""

from collections import deque
from collections.abc import Callable

from e2e_runner.events import Event, Warned


class Telling:
    """Hands events on to whoever consumes them."""

    def __init__(self, tell: Callable[[Event], None], clock: Callable[[], float]) -> None:
        """Begin to count the seconds of the run; `clock` is monotonic."""
        self._tell = tell
        self._clock = clock
        self.since = clock()
        self._untold: deque[Event] = deque()

    def at(self) -> float:
        """Give the seconds since the start of the run."""
        return self._clock() - self.since

    def emit_soon(self, event: Event) -> None:
        """Emit before the next event, at the latest.

        Between two examples nobody is told anything, so that the next starts first: its first event
        comes when it runs.
        """
        self._untold.append(event)

    def emit(self, event: Event) -> None:
        """Emit now, after what was to be emitted soon."""
        self.emit_soon(event)
        self.flush()

    def flush(self) -> None:
        """Emit what was to be emitted soon."""
        while self._untold:  # one by one: what follows is told even where one cannot be
            self._tell(self._untold.popleft())

    def warn(self, message: str) -> None:
        """Emit a warning that is about no example."""
        self.emit(Warned(at=self.at(), message=message))
