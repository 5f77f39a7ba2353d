"""The request to end a run early, as the engine and the attempts see it."""

import asyncio
import signal


class Stop:
    """Set once by a first signal (end with grace), and again by a second (kill now)."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = loop.create_future()
        self.now: asyncio.Future[None] = loop.create_future()
        self.signal: signal.Signals | None = None  # the first one

    def request(self, number: signal.Signals) -> int:
        """Note a signal; gives how many requests there were, at most 2."""
        if self.signal is None:
            self.signal = number
            self.asked.set_result(None)
            return 1
        if not self.now.done():
            self.now.set_result(None)
        return 2
