"""The output of a script: log files written by the script itself, kept within bounds, and read back.

Nothing here holds more than about a megabyte of output in memory.
"""

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from e2e_runner.text import size as format_size

_CHUNK = 1024 * 1024
_TAIL = 64 * 1024  # bytes of output that reports and rules look at
_LOOKS = 10  # for a moment in which nothing is written
_SCAN_OVERLAP = 4096  # bytes; a match of `fail-on-output` longer than this may be missed


class Log:
    """One log file, open for the script to append to.

    Beyond `limit` bytes the middle is dropped: the first half of the limit is put aside, and the rest
    of the file is emptied as often as it outgrows the other half. The script keeps writing through its
    own descriptor all the while. `close` puts the pieces together.
    """

    def __init__(self, file: Path, limit: int) -> None:
        """Create the file; raises OSError."""
        self.file = file
        self.fd = os.open(
            file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
        )
        self.dropped = 0  # bytes
        self._half = max(limit // 2, 1)
        self._keep = min(self._half // 4, _CHUNK)
        self._cut = False
        self._kept = b""  # what stood just before the last cut
        self._read_to = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def bound(self) -> None:
        """Drop the middle if the log has outgrown its limit; cheap when it has not. Raises OSError."""
        size = os.fstat(self.fd).st_size
        if size <= (self._half if self._cut else 2 * self._half):
            return
        start = 0
        if not self._cut:
            self._save_head()
            self._cut = True
            start = self._half
        kept_from, kept = start, b""
        # What comes after the last look is lost with the cut, and may be the last words of a script.
        for _ in range(_LOOKS):
            size = os.fstat(self.fd).st_size
            kept_from = max(start, size - self._keep)
            kept = os.pread(self.fd, self._keep, kept_from)
            if os.fstat(self.fd).st_size == size:
                break
        self.dropped += len(self._kept) + kept_from - start
        self._kept = kept
        os.ftruncate(self.fd, 0)
        self._read_to = 0

    def new_text(self) -> str:
        """Read what was written since the last call, at most a megabyte at a time."""
        if self.fd < 0:
            return ""
        data = os.pread(self.fd, _CHUNK, self._read_to)
        self._read_to += len(data)
        return self._decoder.decode(data)

    def close(self) -> None:
        """Put the pieces together and close; `file` is then whole, but for its middle.

        Raises OSError when it may lack more than that, as on a full disk: a script that ignores
        failed writes does not say so, and one that dies of them can often not write why.
        """
        if self.fd < 0:
            return
        try:
            self.bound()  # the last flood may have come after the last look
            if self._cut:
                self._assemble()
            disk = os.fstatvfs(self.fd)
            if disk.f_bavail == 0 and disk.f_blocks > 0:  # some file systems do not count
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
        finally:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Close and remove a log that nobody wrote to."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            self.file.unlink()

    @property
    def _head_file(self) -> Path:
        return self.file.with_name(self.file.name + ".head")

    def _save_head(self) -> None:
        with self._head_file.open("wb") as head:
            _copy(self.fd, head.fileno(), self._half)

    def _assemble(self) -> None:
        dropped = format_size(self.dropped)
        note = f"\n[... e2e-run dropped {dropped} of output here: more than max-output ...]\n"
        with self._head_file.open("ab") as whole:
            whole.write(note.encode() + self._kept)
            whole.flush()
            _copy(self.fd, whole.fileno(), os.fstat(self.fd).st_size)
        self._head_file.replace(self.file)


def tail(files: Sequence[Path], limit: int = _TAIL) -> tuple[str, bool]:
    """Decode the end of the logs, one after the other, and tell whether that is not the whole.

    At most `limit` bytes of each; invalid UTF-8 becomes U+FFFD; a log that cannot be read counts as
    empty.
    """
    texts = []
    cut = False
    for file in files:
        with contextlib.suppress(OSError), _open_regular(file) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            data = stream.read(limit)
            if size > limit:  # begin with a whole line where there is one
                cut = True
                data = data[data.find(b"\n", 0, limit // 2) + 1 :]
            texts.append(data.decode("utf-8", "replace"))
    return "".join(texts), cut


def first_match(files: Sequence[Path], patterns: Sequence[re.Pattern[str]]) -> str | None:
    """Find the first text in the logs that one of the patterns matches; None when none does."""
    for file in files:
        with contextlib.suppress(OSError), _open_regular(file) as stream:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            overlap = ""
            while data := stream.read(_CHUNK):
                text = overlap + decoder.decode(data)
                for pattern in patterns:
                    if found := pattern.search(text):
                        return found.group()
                overlap = text[-_SCAN_OVERLAP:]
    return None


def _open_regular(file: Path) -> BinaryIO:
    """Open a log for reading; a script may have put a pipe in its place, on which to wait for ever."""
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file any more", str(file))
    return os.fdopen(fd, "rb")


def _copy(source: int, target: int, count: int) -> None:
    done = 0
    while done < count:
        data = os.pread(source, min(_CHUNK, count - done), done)
        if not data:
            return
        done += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
