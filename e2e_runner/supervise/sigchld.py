"""Waking up when a child has ended, in a loop that polls."""

import contextlib
import os
import signal


class ChildEnded:
    """A descriptor that is readable once a child has ended; one a process, as SIGCHLD is."""

    def __init__(self) -> None:
        self.fd, write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only a handled signal wakes
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Give the descriptor, for select and poll."""
        return self.fd

    def clear(self) -> None:
        """Have it wait for the next child; call this before reaping, so that none is missed."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 512):
                pass
