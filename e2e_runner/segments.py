"""The shared memory that a killed PostgreSQL server leaves behind: System V segments, which no process holds.

A server keeps one small segment, by which it knows whether another server uses the same data; it names
it in its ``postmaster.pid``. Killed by SIGKILL it cannot remove it, and nothing else would.

The standard library alone: the spawner process uses this too.
"""

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

PID_FILE = "postmaster.pid"

_DEPTH = 3  # folders between the one that is searched and a server's data, that included
_LONGEST = 65536  # bytes of a pid file, which has eight short lines
_SHMEM_LINE = 6  # of the pid file, counted from 0: "key id"
_IPC_RMID = 0
_KEY_BITS = 32
_SYSTEM_TABLE = Path("/proc/sysvipc/shm")  # Linux


def release_segments(folder: Path) -> bool:
    """Remove the segments of the servers whose data lies in or below `folder`, as deep as we put it.

    False when one of the servers is still attached to its own, and therefore lives.
    """
    # Not a list: `all` would stop at the first that lives.
    return min([_release(file.parent) for file in _pid_files(folder)], default=True)


def _pid_files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Find them without following a link, which leads to what is not ours."""
    below = []
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == PID_FILE:
                yield folder / PID_FILE
            elif depth and entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
    for name in below:
        yield from _pid_files(folder / name, depth - 1)


def _release(data: Path) -> bool:
    try:
        key, number, owner = _segment_of(data)
    except (OSError, ValueError):
        return True  # it named none, or is gone
    libc = ctypes.CDLL(None, use_errno=True)
    # The pair tells a segment: its key may be anybody's by now, and its number too.
    if libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0) != number:
        return True
    if sys.platform == "linux":
        users = _attached(number, owner)
        if users is None:
            return True
        if users:
            return False
    libc.shmctl(number, _IPC_RMID, None)
    return True


def _segment_of(data: Path) -> tuple[int, int, int]:
    """Give key, number and owner of a server's segment; raises OSError, ValueError."""
    owner, text = _read(data / PID_FILE)
    lines = text.splitlines()
    if len(lines) > _SHMEM_LINE:
        key, number = map(int, lines[_SHMEM_LINE].split())
        return _signed(key), number, owner
    # It was killed after making the segment and before naming it. The key is the folder's inode.
    key = _signed(data.stat().st_ino)
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0)
    if number < 0:
        raise ValueError("no segment")
    return key, number, owner


def _read(file: Path) -> tuple[int, str]:
    """Read owner and text of a file that its owner may have replaced by anything; raises OSError."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file", str(file))
        return status.st_uid, os.read(fd, _LONGEST).decode("utf-8", errors="replace")
    finally:
        os.close(fd)


def _attached(number: int, owner: int) -> int | None:
    """Tell how many processes are attached to a segment; None when it is not there, or not `owner`'s."""
    for line in _SYSTEM_TABLE.read_text(encoding="ascii").splitlines()[1:]:
        # key shmid perms size cpid lpid nattch uid ...
        fields = line.split()
        if int(fields[1]) == number:
            # Anybody can name any segment in a file; to remove it takes the right of its owner.
            return int(fields[6]) if int(fields[7]) == owner else None
    return None


def _signed(key: int) -> int:
    """Take a key as the 32-bit integer that it is in C."""
    key &= (1 << _KEY_BITS) - 1
    return key - (1 << _KEY_BITS) if key >> (_KEY_BITS - 1) else key
