"""Stopping what an earlier run left on a port (``--free-ports``)."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from e2e_runner.model import PortOwner
from e2e_runner.ports.ownership import EarlierRun, process_info

if TYPE_CHECKING:
    import psutil

_HAS_PIDFD = hasattr(os, "pidfd_open")
_SAME_START = 1.0  # seconds: start times derive from the wall clock, which may be stepped
_AFTER_KILL = 5.0  # seconds that the kernel gets to take a killed process apart
_POLL = 0.02  # seconds


class Outcome(StrEnum):
    """What became of a leftover; the value says it in words."""

    GONE = "was gone already"
    TERMINATED = "stopped by SIGTERM"
    KILLED = "killed after its grace"
    NOT_THE_SAME = "left alone: its pid is another process now"
    NOT_PERMITTED = "left alone: signalling it is not permitted"
    SURVIVED = "still there after SIGKILL"

    @property
    def stopped(self) -> bool:
        """Whether the process is no more."""
        return self in {Outcome.GONE, Outcome.TERMINATED, Outcome.KILLED}


class _Pinned(Protocol):
    """One process, whatever becomes of its pid."""

    def send(self, number: signal.Signals) -> None: ...

    async def gone_within(self, seconds: float) -> bool: ...


class _PinnedByPidfd:
    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    async def gone_within(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._pidfd, gone.set)
        try:
            async with asyncio.timeout(seconds):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True


class _PinnedByStartTime:
    """Where there are no pidfds: psutil compares the start time before it sends a signal."""

    def __init__(self, process: "psutil.Process") -> None:
        self._process = process

    def send(self, number: signal.Signals) -> None:
        import psutil

        try:
            self._process.send_signal(number)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError from error
        except psutil.AccessDenied as error:
            raise PermissionError from error

    async def gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._running():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL)
        return True

    def _running(self) -> bool:
        import psutil

        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


async def stop_leftover(owner: PortOwner, *, earlier: EarlierRun, grace: float) -> Outcome:
    """Stop a process that an earlier run left behind: SIGTERM, `grace` seconds, SIGKILL.

    The process is pinned first, then its start time and its tag are read again: what took over its
    pid is never signalled. Workers that share its socket may live on: ask `taken` again.
    Raises ValueError for an owner that carries no tag of an earlier run.
    """
    process = owner.process
    if process is None or owner.earlier_run is None:
        raise ValueError(f"not left by an earlier run: {owner}")
    try:
        with _pinned(process.pid) as pinned:
            now = process_info(process.pid)
            if now is None:
                return Outcome.GONE
            same_start = abs(now.started - process.started) <= _SAME_START
            if not same_start or earlier(process.pid) != owner.earlier_run:
                return Outcome.NOT_THE_SAME
            return await _escalate(pinned, grace)
    except ProcessLookupError:
        return Outcome.GONE
    except PermissionError:
        return Outcome.NOT_PERMITTED


async def _escalate(pinned: _Pinned, grace: float) -> Outcome:
    pinned.send(signal.SIGTERM)
    if await pinned.gone_within(grace):
        return Outcome.TERMINATED
    try:
        pinned.send(signal.SIGKILL)
    except ProcessLookupError:
        return Outcome.TERMINATED
    return Outcome.KILLED if await pinned.gone_within(_AFTER_KILL) else Outcome.SURVIVED


@contextmanager
def _pinned(pid: int) -> Iterator[_Pinned]:
    if not _HAS_PIDFD:
        with _pinned_by_start_time(pid) as pinned:
            yield pinned
        return
    pidfd = os.pidfd_open(pid)
    try:
        yield _PinnedByPidfd(pidfd)
    finally:
        os.close(pidfd)


@contextmanager
def _pinned_by_start_time(pid: int) -> Iterator[_Pinned]:
    import psutil

    try:
        yield _PinnedByStartTime(psutil.Process(pid))
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
