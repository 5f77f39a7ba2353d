"""Who listens on a port: the process behind a socket, its tags, and all of it in words."""

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from e2e_runner.model import OnPortConflict, PortOwner, ProcessInfo
from e2e_runner.ports.sockets import (
    Listener,
    bindable,
    bound,
    connected,
    holders,
    listening,
    listening_ports_of,
)
from e2e_runner.text import age, one_line, plural, shorten

if TYPE_CHECKING:
    import psutil

EarlierRun = Callable[[int], str | None]
"""Gives the id of the earlier run whose tag a pid carries; see `earlier_run`."""

_LINUX: bool = sys.platform == "linux"
_WAITING: dict[OnPortConflict | None, str] = {
    OnPortConflict.FAIL: ", or wait for it with --on-port-conflict wait",
    OnPortConflict.WAIT: ", or let the example wait longer with a longer --timeout",
}
_IN_THE_WAY_OF_IPV4 = {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"}  # noqa: S104 - compared with, never bound
_IN_THE_WAY = {*_IN_THE_WAY_OF_IPV4, "::1"}
_CONTAINER_PROXIES = {
    "com.docker.backend",
    "com.docker.vpnkit",
    "containerd",
    "dockerd",
    "docker-proxy",
    "gvproxy",
    "pasta",
    "pasta.avx2",
    "podman",
    "rootlessport",
    "rootlessport-child",
    "rootlesskit",
    "slirp4netns",
    "vpnkit-bridge",
}
_COMMAND_WIDTH = 100
_NOT_TOLD = (
    "nothing is seen to listen on it, but it cannot be bound, "
    "and the system does not tell which process holds it"
)


def taken(
    ports: Iterable[int], *, earlier: EarlierRun | None = None
) -> dict[int, tuple[PortOwner, ...]]:
    """Map each of `ports` that an example could not have to those who hold it.

    Holding means to listen on 127.0.0.1, ::1 or a wildcard address, or to be in the way of a bind
    without listening. A server on another address only (10.0.0.5) does not count, for it leaves
    the loopback address free; `owners` lists it.
    """
    found: dict[int, list[PortOwner]] = {}
    for owner in owners(ports, earlier=earlier):
        if not owner.addresses or _IN_THE_WAY.intersection(owner.addresses):
            found.setdefault(owner.port, []).append(owner)
    return {port: tuple(held_by) for port, held_by in found.items()}


def owners(ports: Iterable[int], *, earlier: EarlierRun | None = None) -> tuple[PortOwner, ...]:
    """List who holds each of `ports`, by port: one entry for each process.

    Of processes that share a socket (a server and its workers) the oldest is named. Free ports
    have no entry. `earlier` recognises what an earlier run left behind.
    """
    wanted = sorted(set(ports))
    found = _look(wanted, earlier)
    if any(_is_strange(owner) for owner in found):
        # Between the looks at its socket and at its process it may have ended.
        found = _look(wanted, earlier)
    return found


def _is_strange(owner: PortOwner) -> bool:
    """Tell whether nobody has the socket, of a user whose processes are visible."""
    return owner.process is None and owner.uid is not None and os.geteuid() in {0, owner.uid}


def _look(wanted: list[int], earlier: EarlierRun | None) -> tuple[PortOwner, ...]:
    sockets = [socket for socket in listening() if socket.port in wanted]
    in_the_way = {socket.port for socket in sockets if socket.address in _IN_THE_WAY}
    silent = [port for port in wanted if port not in in_the_way and not bindable(port)]
    if not sockets and not silent:
        return ()
    found = _by_process(sockets, earlier)
    if silent:
        found += _silent_owners(silent, earlier)
    return tuple(sorted(found, key=lambda owner: owner.port))


def _silent_owners(ports: list[int], earlier: EarlierRun | None) -> list[PortOwner]:
    """Find who holds each of `ports` without listening on it; an owner has no addresses then."""
    found: list[PortOwner] = []
    unused = [socket for socket in bound(ports) if socket.address in _IN_THE_WAY]
    clients = connected(ports)
    for port in ports:
        ways = (
            ("has bound it and does not listen", unused),
            ("holds it by a connection", clients),
        )
        held = [
            replace(owner, addresses=(), note=_joined(how, owner.note))
            for how, sockets in ways
            for owner in _by_process([each for each in sockets if each.port == port], earlier)
        ]
        found += held or [PortOwner(port=port, addresses=(), process=None, note=_NOT_TOLD)]
    return found


def earlier_run(pid: int, *, project: str, is_live: Callable[[str], bool]) -> str | None:
    """Give the id of the run that started `pid`, if its own environment proves an earlier one.

    It must hold ``E2E_RUN=1``, ``E2E_RUN_PROJECT`` equal to `project` (the absolute root) and an
    ``E2E_RUN_ID`` of a run that `is_live` denies. An environment that cannot be read proves nothing.
    """
    environment = _environment(pid)
    run_id = environment.get("E2E_RUN_ID")
    proven = (
        environment.get("E2E_RUN") == "1"
        and environment.get("E2E_RUN_PROJECT") == project
        and run_id
    )
    return run_id if proven and run_id and not is_live(run_id) else None


def started_for(pid: int) -> tuple[str, str] | None:
    """Give the run and the example that its own environment says `pid` was started for."""
    environment = _environment(pid)
    run_id, example = environment.get("E2E_RUN_ID"), environment.get("E2E_RUN_EXAMPLE")
    return (run_id, example) if run_id and example else None


def describe(owner: PortOwner, now: float) -> str:
    """Say who holds a port. `now` is in seconds since the epoch.

    >>> server = ProcessInfo(pid=4242, command="python server.py", started=0.0, user="maria")
    >>> describe(PortOwner(port=8000, addresses=("::",), process=server), 7200.0)
    'port 8000 is taken by pid 4242 (python server.py), user maria, started 2h00m ago'
    """
    said = f"port {owner.port} is taken"
    if holder := holder_words(owner, now):
        said += f" by {holder}"
    if owner.earlier_run is not None:
        said += ", left by an earlier run"
    return f"{said}: {one_line(owner.note)}" if owner.note else said


def holder_words(owner: PortOwner, now: float) -> str:
    """Name the process that holds a port; empty where it is not visible. `now` as for `describe`.

    >>> server = ProcessInfo(pid=4242, command="python server.py", started=0.0, user="maria")
    >>> holder_words(PortOwner(port=8000, addresses=("::",), process=server), 7200.0)
    'pid 4242 (python server.py), user maria, started 2h00m ago'
    """
    process = owner.process
    if process is None:
        return ""
    command = shorten(one_line(process.command), _COMMAND_WIDTH)
    said = f"pid {process.pid} ({command})" if command else f"pid {process.pid}"
    if process.user:
        said += f", user {one_line(process.user)}"
    return f"{said}, started {age(now - process.started)} ago"


def advice(owner: PortOwner, *, policy: OnPortConflict | None) -> str:
    """Say in one sentence what to do about a taken port.

    `policy` is the one in force; None where none applies, as when the script has failed already.
    """
    process = owner.process
    if owner.earlier_run is not None and process is not None:
        return f"Run again with --free-ports to have it stopped, or stop it yourself: kill {process.pid}."
    if "container" in owner.note and "another container" not in owner.note:
        return (
            "Stop the container that publishes the port "
            f"(docker ps --filter publish={owner.port} names it)."
        )
    if process is not None:
        stop = f"Stop it (kill {process.pid})"
    elif owner.note == _NOT_TOLD:
        stop = "Stop what has bound the port without listening on it, or choose another port"
    elif os.geteuid() in {0, owner.uid}:
        stop = "Stop it where it runs, such as in another container, or choose another port"
    else:
        stop = f"As the owner or as root, `e2e-run ports {owner.port}` names the process: stop it there"
    return f"{stop}{_WAITING.get(policy, '')}."


def process_info(pid: int) -> ProcessInfo | None:
    """Look at a process; None when it has ended or is not visible to this user."""
    import psutil

    try:
        process = psutil.Process(pid)
        return ProcessInfo(
            pid=pid,
            command=_command(process),
            started=process.create_time(),
            user=_process_user(process),
            uid=_process_uid(process),
            ports=listening_ports_of([pid]).get(pid, ()),
        )
    except psutil.Error:
        return None


def _by_process(sockets: Iterable[Listener], earlier: EarlierRun | None) -> list[PortOwner]:
    sockets = list(sockets)
    inodes = {socket.inode for socket in sockets if socket.inode is not None}
    pids_of = holders(inodes) if inodes else {}
    grouped: dict[tuple[int, int | None, int | None], tuple[list[Listener], list[ProcessInfo]]] = {}
    for socket in sockets:
        pids = pids_of.get(socket.inode, []) if socket.inode is not None else [socket.pid]
        seen = [info for pid in pids if pid is not None and (info := process_info(pid)) is not None]
        seen.sort(key=lambda info: (info.started, info.pid))
        key = (socket.port, seen[0].pid if seen else None, None if seen else socket.uid)
        grouped.setdefault(key, ([], seen))[0].append(socket)
    return [_owner(group, seen, earlier) for group, seen in grouped.values()]


def _owner(
    sockets: list[Listener], seen: list[ProcessInfo], earlier: EarlierRun | None
) -> PortOwner:
    port, uid = sockets[0].port, sockets[0].uid
    addresses = tuple(dict.fromkeys(socket.address for socket in sockets))
    process = seen[0] if seen else _docker_proxy(port)
    notes = [_container_note(process)]
    if process is None:
        notes.append(_not_visible(uid))
    elif len(seen) > 1:
        notes.append(f"shared with {plural(len(seen) - 1, 'more process', 'more processes')}")
    if not _IN_THE_WAY_OF_IPV4.intersection(addresses):
        others = "localhost or on every address" if "::1" in addresses else "every address"
        notes.append(
            f"only on {', '.join(addresses)}, which is in the way of a server on {others}, "
            "not of one on 127.0.0.1"
        )
    return PortOwner(
        port=port,
        addresses=addresses,
        process=process,
        uid=uid,
        earlier_run=earlier(process.pid) if earlier is not None and process is not None else None,
        note=_joined(*notes),
    )


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _not_visible(uid: int | None) -> str:
    if uid is None:
        return "its process is not visible to you"
    # One's own processes, and for root all, are visible unless a container hides them.
    hidden = "from here, as in another container" if os.geteuid() in {0, uid} else "to you"
    return f"its process is not visible {hidden}: it belongs to {_user(uid)}"


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _container_note(process: ProcessInfo | None) -> str:
    if process is None:
        return ""
    try:
        words = shlex.split(process.command)
    except ValueError:
        words = process.command.split()
    # psutil gives the bare name of a process whose arguments are hidden.
    name = Path(words[0]).name if words else ""
    if name not in _CONTAINER_PROXIES:
        return ""
    options = dict(itertools.pairwise(words))
    if "-container-ip" in options and "-container-port" in options:
        name += f" for {options['-container-ip']}:{options['-container-port']}"
    return f"published by a container ({name})"


def _docker_proxy(port: int) -> ProcessInfo | None:
    """Find the proxy that publishes `port`: its arguments are public where its sockets are not."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            options = dict(itertools.pairwise(words))
            is_proxy = bool(words) and Path(words[0]).name == "docker-proxy"
            if is_proxy and options.get("-host-port") == str(port):
                return process_info(process.pid)
    return None


def _command(process: "psutil.Process") -> str:
    import psutil

    try:
        words = process.cmdline()
    except psutil.AccessDenied:
        words = []
    # One word with blanks is a title that the program gave itself ("nginx: master process").
    return words[0] if len(words) == 1 else shlex.join(words) or process.name()


def _process_user(process: "psutil.Process") -> str:
    import psutil

    try:
        return process.username()
    except psutil.AccessDenied:
        return ""


def _process_uid(process: "psutil.Process") -> int | None:
    import psutil

    try:
        return process.uids().effective
    except psutil.AccessDenied:
        return None


def _environment(pid: int) -> dict[str, str]:
    """Read the environment that a process was started with; empty when that is not allowed."""
    return _environment_proc(pid) if _LINUX else _environment_psutil(pid)


def _environment_proc(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return parse_environment(raw)


def _environment_psutil(pid: int) -> dict[str, str]:
    import psutil

    try:
        return psutil.Process(pid).environ()
    except psutil.Error:
        return {}


def parse_environment(raw: bytes) -> dict[str, str]:
    r"""Parse NUL-terminated ``NAME=VALUE`` entries. A name given twice proves nothing and is left out.

    >>> parse_environment(b"A=1\0B=x=y\0A=2\0junk\0")
    {'B': 'x=y'}
    """
    pairs = [entry.partition(b"=") for entry in raw.split(b"\0") if b"=" in entry]
    names = [name for name, _, _ in pairs]
    return {
        os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if names.count(name) == 1
    }
