"""How a keeper holds on to everything that its script starts, one class for each tier.

A containment is created by the spawner, entered by the keeper, and used only there. Its methods work
on the keeper's own view of process ids. It serves one script after the other for as long as each
leaves nothing behind.
"""

import contextlib
import errno
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from e2e_runner.supervise.netns import UserNamespace

if sys.platform == "linux":
    from e2e_runner.supervise import linux


class Containment(Protocol):
    """What a keeper asks of its tier."""

    def fork(self) -> int:
        """Fork the keeper into the tier: its pid in the spawner, 0 in the keeper. Raises OSError."""

    def enter(self) -> None:
        """Finish the set-up inside the keeper, before anything is started. Raises OSError."""

    def step_aside(self) -> None:
        """Move the keeper itself out of what `kill_all` kills; called again harmlessly."""

    def started(self, script: int, env: Mapping[bytes, bytes]) -> None:
        """Note which process the script is, and its environment."""

    @property
    def observe_every(self) -> int | None:
        """Milliseconds between calls of `observe` that the tier wants; None for none."""

    def observe(self) -> None:
        """Look at what the script has started, while it can still be told."""

    def listed(self) -> list[int]:
        """List what lives, by the keeper's own view of process ids."""

    def signal_all(self, number: int) -> None:
        """Send a signal to everything contained, once to each process."""

    def kill_all(self) -> None:
        """Send SIGKILL to everything contained; called again and again until `any_left` is false."""

    def any_left(self, *, has_children: bool) -> bool:
        """Tell whether anything lives on; `has_children` says whether the keeper has any child."""

    def close(self) -> None:
        """Give back what the tier took, once nothing is left."""


def _signal_listed(number: int, list_pids: Callable[[], list[int]]) -> None:
    """Signal the processes that `list_pids` gives, and never one that merely got their number.

    Each is pinned by a pidfd first; only what is listed again after that is signalled, so a number
    that was reused by a stranger in between is not.
    """
    pinned: dict[int, int] = {}
    try:
        for pid in list_pids():
            with contextlib.suppress(OSError):
                pinned[pid] = os.pidfd_open(pid)
        for pid in list_pids():
            if pid in pinned:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pinned[pid], number)
    finally:
        for fd in pinned.values():
            os.close(fd)


class Scan:
    """Tier `scan`: the keeper is a child subreaper, and every descendant leads back to it.

    Also the base of the other tiers of Linux, which adopt too. A program that forks faster
    than it can be listed can keep ahead of `kill_all` for a while. The keeper joins the user namespace
    of the run where one is given.
    """

    def __init__(self, run: UserNamespace | None = None) -> None:
        self._run = run

    def fork(self) -> int:
        """Fork plainly."""
        return os.fork()

    def enter(self) -> None:
        """Join the run's user namespace, and adopt orphans from now on."""
        if self._run is not None:
            self._run.enter()
        linux.become_subreaper()

    def step_aside(self) -> None:
        """Nothing to do: the keeper is no descendant of its own."""

    def started(self, script: int, env: Mapping[bytes, bytes]) -> None:
        """Nothing to note: adoption needs no knowledge of the script."""

    @property
    def observe_every(self) -> int | None:
        """Adoption misses nothing, so nothing is observed."""
        return None

    def observe(self) -> None:
        """Nothing to look at."""

    def signal_all(self, number: int) -> None:
        """Signal everything contained, each process once."""
        _signal_listed(number, self.listed)

    def kill_all(self) -> None:
        """Kill all descendants."""
        self._kill_children_quickly()
        _signal_listed(signal.SIGKILL, self.listed)

    def any_left(self, *, has_children: bool) -> bool:
        """Every chain of descendants ends in a child of this process, dead parents being skipped."""
        return has_children

    def close(self) -> None:
        """Nothing was taken."""

    def listed(self) -> list[int]:
        """List the descendants."""
        return linux.descendants(os.getpid())

    @staticmethod
    def _kill_children_quickly() -> None:
        # A program that forks and exits for ever is at each moment a fresh child of ours; reading
        # this one file and killing takes less time than a fork. A child of ours that we have not
        # reaped keeps its number, so these cannot be strangers.
        children = f"/proc/self/task/{os.getpid()}/children"
        with contextlib.suppress(OSError):  # needs CONFIG_PROC_CHILDREN
            for _ in range(100):
                pids = Path(children).read_bytes().split()
                if not pids:
                    return
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(int(pid), signal.SIGKILL)


class Cgroup(Scan):
    """Tier `cgroup`: the script is born in a cgroup v2 of its own, which one write kills.

    The keeper lives in the cgroup too, so that what it starts is in it from the first instruction, and
    moves out only before a kill: the kernel may take tens of milliseconds to move a process.
    """

    def __init__(self, folder: str, run: UserNamespace | None = None) -> None:
        super().__init__(run)
        self._folder = folder  # .../e2e-run-ID/KEEPER; its parent takes the keeper in before a kill
        self._members = -1  # descriptor of cgroup.procs

    def fork(self) -> int:
        """Make the cgroup and fork into it."""
        os.mkdir(self._folder)  # noqa: PTH102 - pathlib is not needed for this
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return linux.clone3(linux.CLONE_INTO_CGROUP, fd)
            finally:
                os.close(fd)
        except OSError:
            os.rmdir(self._folder)  # noqa: PTH106 - as above
            raise

    def enter(self) -> None:
        """Adopt orphans, for what leaves the cgroup, and keep the list of members at hand."""
        super().enter()
        self._members = os.open(f"{self._folder}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)

    def step_aside(self) -> None:
        """Leave the cgroup, so that killing it does not kill the keeper."""
        self._write(Path(self._folder).parent / "cgroup.procs", b"0")

    def kill_all(self) -> None:
        """Kill the cgroup as a whole, then descendants that left it."""
        with contextlib.suppress(OSError):  # Linux before 5.14 lacks it
            self._write(Path(self._folder, "cgroup.kill"), b"1")
            if self._in_cgroup():
                return  # the kernel is at it: listing what dies anyway would only take time
        super().kill_all()

    def any_left(self, *, has_children: bool) -> bool:
        """Ask for children first: they are what there is as a rule."""
        return has_children or bool(self._in_cgroup())

    def listed(self) -> list[int]:
        """List the members of the cgroup and the descendants that left it."""
        return list(dict.fromkeys([*super().listed(), *self._in_cgroup()]))

    def close(self) -> None:
        """Remove the cgroup and those that the script made below it."""
        remove_cgroup(Path(self._folder))

    def _in_cgroup(self) -> list[int]:
        data = os.pread(self._members, 65536, 0)
        # 0 stands for a process that this PID namespace does not show.
        return [pid for pid in map(int, data.split()) if pid not in (0, os.getpid())]

    @staticmethod
    def _write(file: Path, data: bytes) -> None:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)


class PidNamespace(Scan):
    """Tier `pid-namespace`: the keeper is the init of a PID namespace with a /proc of its own.

    An init adopts as a subreaper does; what differs is how it comes to be, and that it can signal
    everything at once.

    When it ends, the kernel kills whatever is left. An ordinary user gets a user namespace around it
    in which ids stay what they are, or has it in that of the run.
    """

    def __init__(self, *, user_namespace: bool, run: UserNamespace | None = None) -> None:
        super().__init__(run)
        self._user_namespace = user_namespace and run is None
        self._ids = (os.geteuid(), os.getegid())
        self._told = -1  # in the keeper: says whether its ids are mapped

    def fork(self) -> int:
        """Fork the init of a new namespace."""
        flags = linux.CLONE_NEWPID | linux.CLONE_NEWNS
        if self._run is not None:
            return _fork_within(self._run, flags)
        if not self._user_namespace:
            return linux.clone3(flags)
        told, telling = os.pipe()
        try:
            pid = linux.clone3(flags | linux.CLONE_NEWUSER)
        except OSError:
            os.close(told)
            os.close(telling)
            raise
        if pid == 0:
            os.close(telling)
            self._told = told
            return 0
        os.close(told)
        with contextlib.suppress(OSError):
            if linux.may_be_anybody():
                linux.map_every_id(pid)  # which only those can who are outside
                os.write(telling, b"1")
        os.close(telling)
        return pid

    def enter(self) -> None:
        """Map the user's ids and mount a /proc that fits."""
        if self._user_namespace:
            mapped = os.read(self._told, 1)
            os.close(self._told)
            if not mapped:
                linux.map_own_ids(*self._ids)
        linux.mount_fresh_proc()

    def listed(self) -> list[int]:
        """List the namespace, by its own numbers."""
        return [pid for pid in linux.parents() if pid != 1]

    def signal_all(self, number: int) -> None:
        """Signal everything in the namespace but this init."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, number)

    def kill_all(self) -> None:
        """Kill everything in the namespace at once; no fork gets away from it."""
        self.signal_all(signal.SIGKILL)


def _fork_within(run: UserNamespace, flags: int) -> int:
    """Fork into new namespaces as somebody in the run's user namespace, which cannot be left again.

    A process in between goes there and forks a child of this one. Raises OSError.
    """
    told, telling = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(told)
        pid = -errno.ECHILD
        try:
            run.enter()
            pid = linux.clone3(flags | linux.CLONE_PARENT)
        except OSError as error:
            pid = -(error.errno or errno.ECHILD)
        finally:
            if pid != 0:
                os.write(telling, struct.pack("=i", pid))
                os._exit(0)
        os.close(telling)
        return 0
    os.close(telling)
    answer = os.read(told, 4)
    os.close(told)
    os.waitpid(between, 0)
    pid = int(struct.unpack("=i", answer)[0]) if answer else -errno.ECHILD
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid), "fork in the user namespace of the run")
    return pid


def reclaim_cgroup(folder: Path, run_id: str) -> None:
    """Kill and remove what a dead run left in its cgroups; a folder not named after it is left alone."""
    if folder.name != f"e2e-run-{run_id}":
        return
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_bytes(b"1")
    remove_cgroup(folder)


def remove_cgroup(folder: Path) -> None:
    """Remove a cgroup and its descendants where they are empty; what is not stays.

    The kernel frees a killed process's membership a moment after its exit is seen, so a removal that
    finds the folder busy is tried again for a short while.
    """
    for current, _, _ in os.walk(folder, topdown=False):
        for _ in range(100):
            try:
                os.rmdir(current)  # noqa: PTH106 - os.walk gives strings
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.002)  # there is no event for "no longer busy"
            else:
                break
