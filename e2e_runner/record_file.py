"""The file that a script writes its records to, as the runner reads it.

It is read through the descriptor that it was made with, and a bounded part of it. So whatever a script
does to the file or puts in its place, reading neither waits nor grows.
"""

import contextlib
import os
import stat
from pathlib import Path

from e2e_runner.records import LONGEST_LINE, Record, decode

MOST_READ = 4 * 1024 * 1024  # bytes of records in an attempt; the rest is ignored
_LOOK = 256 * 1024  # bytes that are read at a time: more would keep everybody waiting


class RecordFile:
    """A file for the records of one attempt; `new` gives those since the last look."""

    def __init__(self, file: Path) -> None:
        """Make the file; raises OSError."""
        self.file = file
        self.more = False  # there was more to read than the last look took
        self.overflowed = False  # more was written than is read
        self.records = 0
        self.nonsense = 0  # lines that were no records
        self._fd = os.open(
            file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.fchmod(self._fd, _mode())
        except OSError:
            self.close()
            raise
        self._read_to = 0
        self._budget = MOST_READ
        self._line = b""  # the beginning of a line that has no end yet
        self._skipping = False  # in a line that is too long to be a record

    def new(self) -> list[Record]:
        """Read the next whole lines; cheap when there are none. `more` tells whether to come again.

        The file is kept from growing beyond `MOST_READ`.
        """
        found: list[Record] = []
        with contextlib.suppress(OSError):  # what cannot be read was not told
            size = os.fstat(self._fd).st_size
            if size < self._read_to:  # the script emptied it
                self._read_to, self._line, self._skipping = 0, b"", False
            end = min(size, self._read_to + self._budget)
            if end < size:
                self.overflowed = True
                os.ftruncate(self._fd, end)
            data = os.pread(self._fd, min(_LOOK, end - self._read_to), self._read_to)
            self._read_to += len(data)
            self._budget -= len(data)
            self.more = self._read_to < end
            if data:
                self._take(data, found)
            if self.overflowed and not self._budget:
                self._line = b""
                os.ftruncate(self._fd, 0)
                self._read_to = 0
        return found

    def rest(self) -> list[Record]:
        """Read the last line once there is no more and the script is over: it may lack its end."""
        found: list[Record] = []
        line, self._line = self._line, b""
        self._take_line(line, found)
        return found

    @property
    def is_untouched(self) -> bool:
        """Whether nobody wrote to the file, or put another in its place."""
        try:
            seen, own = self.file.lstat(), os.fstat(self._fd)
        except OSError:
            return False
        return (
            os.path.samestat(seen, own)
            and (own.st_size, own.st_nlink) == (0, 1)
            and stat.S_IMODE(own.st_mode) == _mode()
            and (own.st_uid, own.st_gid) == (os.geteuid(), os.getegid())
            and self._budget == MOST_READ
        )

    def close(self) -> None:
        """Release the descriptor; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close and remove it; what stands in its place goes with the folder around it."""
        self.close()
        with contextlib.suppress(OSError):
            self.file.unlink()

    def _take(self, data: bytes, found: list[Record]) -> None:
        *lines, part = (self._line + data).split(b"\n")
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        for line in lines:
            self._take_line(line, found)
        if len(part) > LONGEST_LINE and not self._skipping:
            self.nonsense += 1
            self._skipping = True
        self._line = b"" if self._skipping else part

    def _take_line(self, line: bytes, found: list[Record]) -> None:
        if not line or line.isspace():
            return
        record = decode(line)
        if record is None:
            self.nonsense += 1
            return
        self.records += 1
        found.append(record)


def _mode() -> int:
    """Open to all for writing where root runs scripts: one that drops its privileges tells, too.

    Who is not to write there cannot know its name, as only its owner can list the folder around it.
    """
    return 0o622 if os.geteuid() == 0 else 0o600
