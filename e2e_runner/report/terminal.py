"""The way to the terminal: a thread that writes, so that nobody waits for it.

A terminal that is paused (Ctrl-S), or a pager that nobody scrolls, would otherwise hold up the run and
its time limits.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from e2e_runner.report.live import LiveRegion
from e2e_runner.report.sink import Sink

_MOST_PENDING = (
    8 * 1024 * 1024
)  # characters; a script that floods with --no-capture waits from here
_GATHER = 0.03  # seconds that the first of several lines waits for the others
_REPAINT_EVERY = 0.1  # seconds
_STOPPED = 2.0  # seconds more than that are no busy machine: the run was stopped (Ctrl-Z) meanwhile


class Terminal:
    """Takes text and writes it in order from a thread of its own, above a live region if there is one.

    `make_region` makes the live region; it is called in the thread, with the first text. With a region
    the text is written together with the next repaint, so that a thousand short examples a second
    cost ten repaints. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        make_region: Callable[[Sink], LiveRegion] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._make_region = make_region
        self._pending: deque[str] = deque()
        self._pending_size = 0
        self._changed = threading.Condition()
        self._hurry = False  # the region is to end, and nothing is to wait for a repaint any more
        self._closing = False
        self._urgent = threading.Event()  # the same, for a wait that new text does not end
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Hand over text; returns at once unless very much of it is waiting."""
        if self._sink.gone:
            return
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="e2e-run-terminal", daemon=True
                )
                self._thread.start()
            self._changed.wait_for(lambda: self._pending_size < _MOST_PENDING)
            self._pending.append(text)
            self._pending_size += len(text)
            if len(self._pending) == 1:  # else the thread knows
                self._changed.notify_all()

    def end_region(self) -> None:
        """Take the live region away; what was handed over before stands above where it was."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._urgent.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            with self._changed:  # whoever waits for room in a queue that nobody empties goes on
                self._sink.gone = True
                self._pending_size = 0
                self._changed.notify_all()

    def _work(self) -> None:
        if self._make_region is not None:
            self._run_region(self._make_region(self._sink))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
            # Waking a reader for every line takes the processor from the scripts.
            self._urgent.wait(_GATHER)
            with self._changed:
                text = self._take()
            if not text:
                return
            self._sink.write(text)
            self._written(text)

    def _run_region(self, region: LiveRegion) -> None:
        over = False
        while not over:
            begin = self._clock()
            with self._changed:
                over = self._changed.wait_for(
                    lambda: self._hurry or self._closing, timeout=_REPAINT_EVERY
                )
                text = self._take()
            # Only the wait is timed: a terminal that is paused (Ctrl-S) shows nobody else's text.
            if self._clock() - begin > _REPAINT_EVERY + _STOPPED:
                region.begin_anew()
            if text:
                region.print_above(text)
                self._written(text)
            elif not over:
                region.repaint()
        region.stop()

    def _take(self) -> str:
        text = "".join(self._pending)
        self._pending.clear()
        return text

    def _written(self, text: str) -> None:
        with self._changed:
            self._pending_size -= len(text)
            self._changed.notify_all()
