"""Tier `process-group`: what works without Linux's means, on macOS and elsewhere.

No system call adopts orphans here, so what belongs to a script is recognised by several marks: being
a descendant of the keeper, being in the script's session, having been seen as a descendant before
(looked at a few times a second), or carrying the run's tag in its environment. A daemon that clears
its environment and detaches between two looks can escape; the documentation says so.
"""

import contextlib
import os
import signal
from collections.abc import Mapping

import psutil

from e2e_runner.supervise.netns import UserNamespace

_TAGS = (b"E2E_RUN_ID", b"E2E_RUN_EXAMPLE")


class ProcessGroup:
    """Holds a script's processes together by session, ancestry, memory and tag."""

    def __init__(self, run: UserNamespace | None = None) -> None:
        self._run = run
        self._script = 0
        self._since = 0.0
        self._tags: dict[str, str] = {}
        self._known: dict[int, psutil.Process] = {}

    def fork(self) -> int:
        """Fork plainly."""
        return os.fork()

    def enter(self) -> None:
        """Join the run's user namespace where one is given (on Linux, where this tier was asked for)."""
        if self._run is not None:
            self._run.enter()

    def step_aside(self) -> None:
        """Nothing to do: the keeper is in another session."""

    def started(self, script: int, env: Mapping[bytes, bytes]) -> None:
        """Remember the script's session and tags."""
        self._script = script
        with contextlib.suppress(psutil.Error):
            self._since = psutil.Process(script).create_time()
        self._tags = {os.fsdecode(tag): os.fsdecode(env[tag]) for tag in _TAGS if tag in env}

    @property
    def observe_every(self) -> int | None:
        """A few looks a second: between two, a daemon can detach unseen."""
        return 200 if self._script else None

    def observe(self) -> None:
        """Remember the present descendants."""
        self._remember(psutil.Process().children(recursive=True))

    def listed(self) -> list[int]:
        """List what belongs to the script."""
        return [process.pid for process in self._members()]

    def signal_all(self, number: int) -> None:
        """Signal all that belongs to the script."""
        for process in self._members():
            # psutil compares start times first, so a reused number is not signalled.
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def kill_all(self) -> None:
        """Kill all that belongs to the script."""
        self.signal_all(signal.SIGKILL)

    def any_left(self, *, has_children: bool) -> bool:
        """Look at the process table; having no child proves nothing here."""
        return bool(self._script) and (has_children or bool(self._members()))

    def close(self) -> None:
        """Nothing was taken."""

    def _remember(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            self._known.setdefault(process.pid, process)

    def _members(self) -> list[psutil.Process]:
        self.observe()
        own_uid = os.getuid()  # root's scripts may leave processes of anybody
        for process in psutil.process_iter():
            if process.pid in self._known or process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if process.create_time() >= self._since - 1 and (
                    os.getsid(process.pid) == self._script
                    or (own_uid in (0, process.uids().real) and self._is_tagged(process))
                ):
                    self._remember([process, *process.children(recursive=True)])
        self._known = {
            pid: process
            for pid, process in self._known.items()
            if process.is_running() and _status(process) != psutil.STATUS_ZOMBIE
        }
        return list(self._known.values())

    def _is_tagged(self, process: psutil.Process) -> bool:
        if not self._tags:
            return False
        environ = process.environ()
        return all(environ.get(name) == value for name, value in self._tags.items())


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
