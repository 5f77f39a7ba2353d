"""The spawner: a small process that forks the keepers, and outlives the runner long enough to clean up.

Started as ``python -I -S -c "... main(fd)"``. Messages from the runner::

    ("setup", tier, run_id, scratch, log, networks)
                         first of all; tier: its name, or "auto"; networks: whether there are to be
                         any, with the network maker's end of its socket
    ("keeper", cgroup, joined)
                         with the keeper's end of its socket; cgroup: its folder, or None; joined:
                         whether it is to be in the user namespace of the run, with the descriptors
                         that the network maker gave for it
    ("abandon", pid)     a keeper died under its script, or does not answer: kill what it held
    ("remove", folder)   when the run is over, however it ends; said before the folder is made

and to the runner::

    ("tier", name, parent, notes)   answer to "setup": what the probes found
    ("forked", pid)                                 or ("not-forked", errno, text)
    ("abandoned", pid)
"""

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from e2e_runner.segments import release_segments
from e2e_runner.supervise.containment import (
    Cgroup,
    Containment,
    PidNamespace,
    Scan,
    remove_cgroup,
)
from e2e_runner.supervise.keeper import keep
from e2e_runner.supervise.netns import UserNamespace, make_networks
from e2e_runner.supervise.sigchld import ChildEnded
from e2e_runner.supervise.wire import Message, Reader, send
from e2e_runner.trees import remove_tree

if sys.platform == "linux":
    from e2e_runner.supervise import linux

_PATIENCE = 15.0  # seconds for the keepers to finish killing after the runner has gone


class Unavailable(Exception):  # noqa: N818 - a finding, not a failure
    """A tier that cannot be had here, with the reason in words."""


def _probe_cgroup(run_id: str) -> str:
    """Make a cgroup, fork into it, kill it; give the folder for this run's cgroups."""
    own = linux.own_cgroup()
    if own is None:
        raise Unavailable("no cgroup v2 is mounted")
    parent = own / f"e2e-run-{run_id}"
    try:
        parent.mkdir()
    except OSError as error:
        raise Unavailable(f"{own}: {error.strerror} (not delegated to this user)") from error
    probe = Cgroup(str(parent / "probe"))
    try:
        pid = probe.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        (parent / "probe" / "cgroup.kill").write_bytes(b"1")
        os.waitpid(pid, 0)
        (parent / "cgroup.procs").write_bytes(b"0")  # a keeper must be able to step out into it
        (own / "cgroup.procs").write_bytes(b"0")
    except OSError as error:
        remove_cgroup(parent)
        raise Unavailable(f"{own}: {error.strerror} ({error.filename})") from error
    probe.close()
    return str(parent)


def _probe_pid_namespace() -> bool:
    """Start an init with a fresh /proc and a child in it; True when it took a user namespace."""
    reason: OSError | None = None
    for user_namespace in (False, True) if os.geteuid() == 0 else (True,):
        tier = PidNamespace(user_namespace=user_namespace)
        try:
            pid = tier.fork()
        except OSError as error:
            reason = error
            continue
        if pid == 0:
            code = 70
            try:
                tier.enter()
                # The point of the fresh /proc: what runs inside must see itself in it.
                code = 0 if Path("/proc/self").readlink() == Path("1") else errno.EXDEV
            except OSError as error:
                code = error.errno or 70
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return user_namespace
        reason = OSError(code, os.strerror(code) if code > 0 else f"signal {-code}")
    raise Unavailable(f"unshare and mount /proc: {reason.strerror if reason else 'refused'}")


def _probe_scan() -> None:
    try:
        linux.become_subreaper()
    except OSError as error:
        raise Unavailable(f"PR_SET_CHILD_SUBREAPER: {error.strerror}") from error


class Tier:
    """The tier in force, as the probes found it."""

    def __init__(self, wanted: str, run_id: str) -> None:
        self.name = "process-group"
        self.user_namespace = False
        self.parent = ""
        self.notes: list[str] = []
        for name in ("cgroup", "pid-namespace", "scan") if wanted == "auto" else (wanted,):
            try:
                self._try(name, run_id)
            except Unavailable as error:
                self.notes.append(f"{name}: {error}")
            else:
                self.name = name
                return
        if wanted not in ("auto", "process-group"):
            self.name = "none"

    def _try(self, name: str, run_id: str) -> None:
        if name == "process-group":
            return
        if sys.platform != "linux":
            raise Unavailable("only on Linux")
        match name:
            case "cgroup":
                self.parent = _probe_cgroup(run_id)
            case "pid-namespace":
                self.user_namespace = _probe_pid_namespace()
            case _:
                _probe_scan()

    def containment(self, cgroup: str | None, run: UserNamespace | None) -> Containment:
        """Make the containment of one keeper, in the user namespace of the run where it is given."""
        match self.name:
            case "cgroup" if cgroup is not None:
                return Cgroup(cgroup, run)
            case "pid-namespace":
                return PidNamespace(user_namespace=self.user_namespace, run=run)
            case "scan":
                return Scan(run)
            case _:
                from e2e_runner.supervise.process_group import ProcessGroup

                return ProcessGroup(run)


class Spawner:
    """The spawner's state and loop."""

    def __init__(self, control: socket.socket, tier: Tier, network_maker: int) -> None:
        self._control = control
        self._tier = tier
        self._network_maker = network_maker  # pid; 0: there is none, or it has ended
        self._reader = Reader()
        self._keepers: dict[int, str | None] = {}  # pid -> cgroup
        # The same, of those that died before their cgroup was empty.
        self._lost: dict[int, str] = {}
        self._child_ended = ChildEnded()
        self.to_remove: list[str] = []  # folders

    def run(self) -> None:
        """Serve the runner until it has gone, and end what it has left."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it went before an answer
            self._serve()
        self._finish()

    def _serve(self) -> None:
        send(self._control, ("tier", self._tier.name, self._tier.parent, self._tier.notes))
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._child_ended, select.POLLIN)
        while not self._reader.ended:
            ready = {fd for fd, _ in poll.poll()}
            if self._child_ended.fd in ready:
                self._reap()
            if self._control.fileno() in ready:
                self._reader.fill(self._control)
                for message in self._reader.messages():
                    self._obey(message)

    def _finish(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self._keepers and time.monotonic() < deadline:
            for pid in self._keepers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)  # its script may have stopped it
            select.select([self._child_ended], [], [], 0.1)
            self._reap()
        for pid in [*self._keepers, *self._lost]:
            self._abandon(pid)
        self._network_maker = 0  # goes at the end of its own socket, or is killed as a stray
        self._kill_orphans()

    def _obey(self, message: Message) -> None:
        match message:
            case ("keeper", cgroup, bool(joined)):
                (fd,) = self._reader.take_fds(1)
                run = UserNamespace(*self._reader.take_fds(2)) if joined else None
                self._fork(fd, cgroup, run)
                if run is not None:
                    run.close()
            case ("abandon", int(pid)):
                self._reap()
                self._abandon(pid)
                self._kill_orphans()
                send(self._control, ("abandoned", pid))
            case ("remove", str(folder)):
                self.to_remove.append(folder)
            case _:
                raise AssertionError(message)

    def _abandon(self, pid: int) -> None:
        """End a keeper that is dead or does not answer, and its cgroup."""
        if pid in self._keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # ours and not reaped, so the number is still its own
            self._wait_for(pid)
        cgroup = self._lost.pop(pid, None)
        if cgroup is not None:
            with contextlib.suppress(OSError):
                Path(cgroup, "cgroup.kill").write_bytes(b"1")
            remove_cgroup(Path(cgroup))

    def _fork(self, fd: int, cgroup: str | None, run: UserNamespace | None) -> None:
        containment = self._tier.containment(cgroup, run)
        try:
            pid = containment.fork()
        except OSError as error:
            os.close(fd)
            text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            send(self._control, ("not-forked", error.errno or 0, text))
            return
        if pid == 0:
            self._control.close()
            keep(socket.socket(fileno=fd), containment, joined=run is not None)
        os.close(fd)
        self._keepers[pid] = cgroup
        send(self._control, ("forked", pid))

    def _reap(self) -> None:
        self._child_ended.clear()
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == self._network_maker:
                    self._network_maker = 0
                cgroup = self._keepers.pop(pid, None)
                if cgroup is not None and Path(cgroup).is_dir():
                    self._lost[pid] = cgroup

    def _wait_for(self, pid: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while pid in self._keepers and time.monotonic() < deadline:
            select.select([self._child_ended], [], [], 0.1)
            self._reap()

    def _kill_orphans(self) -> None:
        """Kill what a dead keeper left: it was handed up to this process, which adopts too."""
        if sys.platform != "linux":
            return
        if self._keepers and self._tier.name == "process-group":
            return  # keepers that live adopt nobody here: what is of theirs is among the orphans
        scan = Scan()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            self._reap()
            parents = linux.parents()
            ours = {*self._keepers, self._network_maker}
            strays = [p for p, up in parents.items() if up == os.getpid() and p not in ours]
            if not strays:
                return
            for pid in strays:
                # Our own children keep their numbers until we reap them.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not self._keepers and not self._network_maker:
                scan.kill_all()
            select.select([self._child_ended], [], [], 0.005)


def main(fd: int) -> NoReturn:
    """Be the spawner on socket `fd`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the runner decides when it is over
    control = socket.socket(fileno=fd)
    reader = Reader()
    while not reader.ended:
        reader.fill(control)
        for message in reader.messages():
            _serve(control, message, reader.take_fds(1))
    os._exit(0)  # the runner had nothing to run


def _serve(control: socket.socket, message: Message, fds: tuple[int, ...]) -> NoReturn:
    match message:
        case ("setup", str(wanted), str(run_id), str(scratch), str(log), bool(networks)):
            pass
        case _:
            raise AssertionError(message)
    complaints = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(complaints, 2)
    tier = Tier(wanted, run_id)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it is not to be had, `scan` is not in force
            linux.become_subreaper()
    network_maker = _fork_network_maker(control, fds[0], tier) if networks else 0
    spawner = Spawner(control, tier, network_maker)
    spawner.run()
    if tier.parent:
        remove_cgroup(Path(tier.parent))
    for folder in (*spawner.to_remove, scratch):
        release_segments(Path(folder))
        remove_tree(Path(folder))
    os._exit(0)


def _fork_network_maker(control: socket.socket, fd: int, tier: Tier) -> int:
    pid = os.fork()
    if pid == 0:
        control.close()
        make_networks(socket.socket(fileno=fd), user_namespace=tier.user_namespace)
    os.close(fd)
    return pid
