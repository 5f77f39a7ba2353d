"""Removing the shared memory of killed servers: real segments, made as PostgreSQL makes them."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_runner.segments import release_segments

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/sysvipc")

_IPC_CREAT_EXCL = 0o3000
_IPC_RMID = 0
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmdt.argtypes = [ctypes.c_void_p]


def exists(number: int) -> bool:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return str(number) in {line.split()[1] for line in lines}


def make(key: int) -> int:
    number: int = LIBC.shmget(ctypes.c_int(key), ctypes.c_size_t(56), _IPC_CREAT_EXCL | 0o600)
    assert number >= 0, os.strerror(ctypes.get_errno())
    return number


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "1" / "data"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def segment(data: Path) -> Iterator[tuple[int, int]]:
    """Make a segment as a server with this data would: key and number."""
    key = data.stat().st_ino & 0x7FFFFFFF
    number = make(key)
    yield key, number
    LIBC.shmctl(number, _IPC_RMID, None)


def note(data: Path, last: str | None) -> None:
    lines = ["4242", str(data), "1795256105", "20001", "/s", "127.0.0.1", *([last] if last else [])]
    (data / "postmaster.pid").write_text("\n".join(lines) + "\n")


def test_the_segment_of_a_dead_server_is_removed(data: Path, segment: tuple[int, int]) -> None:
    key, number = segment
    note(data, f"{key:9d} {number:9d}")
    assert release_segments(data.parent.parent)
    assert not exists(number)
    assert release_segments(data.parent.parent)


def test_a_server_that_lives_keeps_its_own(data: Path, segment: tuple[int, int]) -> None:
    key, number = segment
    note(data, f"{key} {number}")
    attached = LIBC.shmat(number, None, 0)
    try:
        assert not release_segments(data.parent.parent)
        assert exists(number)
    finally:
        LIBC.shmdt(attached)
    assert release_segments(data.parent.parent)


def test_a_server_killed_before_it_named_its_segment_is_found_out(
    data: Path, segment: tuple[int, int]
) -> None:
    note(data, None)
    assert release_segments(data.parent.parent)
    assert not exists(segment[1])


def test_a_segment_of_another_key_is_left_alone(data: Path, segment: tuple[int, int]) -> None:
    key, number = segment
    note(data, f"{key + 1} {number}")
    assert release_segments(data.parent.parent)
    assert exists(number)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("how", ["given away", "linked"])
def test_a_pid_file_of_somebody_else_does_not_reach_our_segments(
    data: Path, segment: tuple[int, int], how: str
) -> None:
    key, number = segment
    note(data, f"{key} {number}")
    if how == "linked":  # to a file of ours, by which it would be ours to remove
        ours = data.parent.parent / "ours"
        (data / "postmaster.pid").rename(ours)
        (data / "postmaster.pid").symlink_to(ours)
    else:
        os.chown(data / "postmaster.pid", 65534, 65534)
    assert release_segments(data.parent.parent)
    assert exists(number)


def test_a_linked_folder_is_not_searched(data: Path, segment: tuple[int, int]) -> None:
    key, number = segment
    note(data, f"{key} {number}")
    folder = data.parent.parent / "other"
    folder.mkdir()
    (folder / "data").symlink_to(data)
    assert release_segments(folder)
    assert exists(number)


def test_a_pid_file_that_never_ends_is_no_trouble(data: Path) -> None:
    os.mkfifo(data / "postmaster.pid")
    assert release_segments(data.parent.parent)


@pytest.mark.parametrize("text", ["", "garbage", "1\n2\n3\n4\n5\n6\nno numbers\n8"])
def test_an_odd_pid_file_is_no_trouble(text: str, data: Path) -> None:
    (data / "postmaster.pid").write_text(text)
    assert release_segments(data.parent.parent)


def test_a_folder_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    assert release_segments(tmp_path / "gone")
