"""The file in which a script tells the run what it is doing. What goes wrong there ends only that."""

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes longer to import than the rest of the narration
    from e2e_runner.records import Record, Value

_VARIABLE = "E2E_RUN_RECORDS"  # as `records.VARIABLE`
_MOST_STEPS = 2**31  # of one process; with 22 bits of its pid, an id fits into 53 bits


class Channel:
    """Appends records to the file that ``E2E_RUN_RECORDS`` names, if it names one.

    Each record is one write at the end of the file, so that processes and threads may write at once.
    """

    def __init__(self) -> None:
        self._off = not os.environ.get(_VARIABLE)
        self._descriptor = -1
        self._file: tuple[int, int] | None = None  # device and inode of what we opened

    def section(self, at: float, title: str) -> None:
        """Tell that a section begins, `at` on the monotonic clock in seconds."""
        if not self._off:
            from e2e_runner.records import SectionBegan

            self._append(SectionBegan(at=at, title=title))

    def began(self, at: float, step: int, title: str, within: int | None) -> None:
        """Tell that a step begins."""
        if not self._off:
            from e2e_runner.records import StepBegan

            self._append(StepBegan(at=at, step=step, title=title, within=within))

    def ended(self, at: float, step: int, error: str, *, cancelled: bool) -> None:
        """Tell that a step has ended."""
        if not self._off:
            from e2e_runner.records import StepEnded

            self._append(StepEnded(at=at, step=step, error=error, cancelled=cancelled))

    def metric(self, at: float, name: str, value: "Value") -> None:
        """Tell a figure."""
        if not self._off:
            from e2e_runner.records import MetricTold

            self._append(MetricTold(at=at, name=name, value=value))

    def summary(self, at: float, text: str) -> None:
        """Tell how the script sums itself up."""
        if not self._off:
            from e2e_runner.records import SummaryTold

            self._append(SummaryTold(at=at, text=text))

    def _append(self, record: "Record") -> None:
        from e2e_runner.records import encode

        line = encode(record)
        try:
            self._off = os.write(self._writable(), line) != len(line)
        except OSError:
            self._off = True

    def _writable(self) -> int:
        # A script that closes all descriptors, as daemons do, may have given the number to a file
        # of its own, or to a connection.
        if self._file is None or self._identity() != self._file:
            self._descriptor = _open(os.environ[_VARIABLE])
            self._file = self._identity()
        return self._descriptor

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _open(path: str) -> int:
    """Open the file for appending. Raises OSError for what is no regular file, too."""
    # Without O_NONBLOCK a FIFO that nobody reads would hold the script; without O_NOFOLLOW a script
    # with more rights could be made to write elsewhere.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if regular and descriptor > 2:  # noqa: PLR2004 - standard error
        return descriptor
    try:
        if regular:
            # The script lacks one of its standard streams, and others may take this for that.
            import fcntl

            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
    raise OSError(f"{path} is no regular file")


def step_id(number: int) -> int:
    """Give the id of a step: no other process that writes to the same file gives the same."""
    return (os.getpid() % 2**22) * _MOST_STEPS + number % _MOST_STEPS
