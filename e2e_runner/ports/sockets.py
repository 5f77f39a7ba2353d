"""TCP sockets of this machine as the kernel tells them: who listens where, and what can be bound.

Linux is asked by netlink or read from ``/proc``; elsewhere psutil is asked.
"""

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e_runner.ports.netlink import bound_rows, listening_rows, namespace_of

_LINUX: bool = sys.platform == "linux"
_LISTEN = b"0A"

# Linux refuses a loopback bind beside a wildcard listener. BSD and macOS allow it with
# SO_REUSEADDR, so there the wildcard is tried as well.
_LOOPBACK = ("127.0.0.1", "::1")
_PROBED_ADDRESSES = _LOOPBACK if _LINUX else (*_LOOPBACK, "0.0.0.0", "::")  # noqa: S104 - bound for an instant, never listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One listening TCP socket, or one that has a local port, where such are asked for.

    `inode` is known on Linux and leads to the processes; elsewhere `pid` is known at once.
    """

    port: int
    address: str
    uid: int | None = None
    inode: int | None = None
    pid: int | None = None


def listening(inside: socket.socket | None = None) -> tuple[Listener, ...]:
    """List the listening TCP sockets of this network namespace, as far as they can be seen.

    `inside` asks for those of another: a socket that was made there, of the family AF_NETLINK and
    the protocol NETLINK_SOCK_DIAG (Linux). Any thread of any user may ask by it, in 50 microseconds.
    """
    return tuple(_listening_linux(inside) if _LINUX else _listening_psutil())


def connected(ports: Collection[int]) -> tuple[Listener, ...]:
    """List the sockets whose local port is one of `ports` and that are connected, not listening."""
    if not _LINUX:
        return ()
    found: list[Listener] = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):  # a kernel without IPv6 has no tcp6
            # An inode of 0 is a connection that no process holds any more (TIME_WAIT).
            found += [
                row
                for listens, row in _rows(file)
                if not listens and row.inode and row.port in ports
            ]
    return tuple(found)


def bound(ports: Collection[int]) -> tuple[Listener, ...]:
    """List the sockets that are bound to one of `ports` and neither listen nor are connected.

    Only Linux 6.8 and later tells; elsewhere there are none to be seen.
    """
    if not _LINUX:
        return ()
    try:
        found = [_listener(*row) for row in bound_rows()]
    except OSError:  # a sandbox whose kernel has no such query
        return ()
    return tuple(row for row in found if row.port in ports)


def bindable(port: int) -> bool:
    """Tell whether a server could bind `port` on the loopback addresses, by really binding.

    Sees what no table shows: a socket that is bound but does not listen, and on macOS the servers
    of other users. A port that needs privileges is not "taken". The bind lasts some microseconds
    and shares the address, so that it is in nobody's way.
    """
    return all(_bindable_on(address, port) for address in _PROBED_ADDRESSES)


def listening_ports_of(
    pids: Iterable[int], inside: socket.socket | None = None
) -> dict[int, tuple[int, ...]]:
    """Map each of `pids` that listens to its TCP ports, sorted, in its own network namespace.

    A process that listens on nothing, has ended or is not visible to this user is left out. Those
    in another namespace than this process take long, 10 milliseconds and more for each namespace,
    unless `inside` is a socket of theirs, as for `listening`.
    """
    if not _LINUX:
        seen = ((pid, _ports_of_psutil(pid)) for pid in pids)
        return {pid: ports for pid, ports in seen if ports}
    with contextlib.ExitStack() as pins:
        tables = _Tables(inside, pins)
        found = {pid: _ports_of_proc(pid, tables) for pid in pids}
    return {pid: ports for pid, ports in found.items() if ports}


def holders(inodes: Collection[int]) -> dict[int, list[int]]:
    """Map each socket inode of `inodes` to the pids, ascending, that hold it open (Linux)."""
    found: dict[int, list[int]] = {inode: [] for inode in inodes}
    with os.scandir("/proc") as entries:
        pids = sorted(int(entry.name) for entry in entries if entry.name.isdecimal())
    for pid in pids:
        for inode in _socket_inodes(pid) & found.keys():
            found[inode].append(pid)
    return found


def parse_row(line: bytes) -> tuple[bool, Listener]:
    """Parse a line of ``/proc/net/tcp`` or ``tcp6``: whether it listens, and the socket."""
    fields = line.split()
    address, _, port = fields[1].partition(b":")
    raw = bytes.fromhex(address.decode("ascii"))
    # Each 32-bit word of the address is printed as a number in the machine's byte order.
    words = struct.unpack(f">{len(raw) // 4}I", raw)
    return fields[3] == _LISTEN, Listener(
        port=int(port, 16),
        address=_address(struct.pack(f"={len(words)}I", *words)),
        uid=int(fields[7]),
        inode=int(fields[9]),
    )


def _address(packed: bytes) -> str:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6  # noqa: PLR2004 - bytes of an IPv4 address
    return socket.inet_ntop(family, packed)


def _listener(port: int, packed: bytes, uid: int, inode: int) -> Listener:
    return Listener(port=port, address=_address(packed), uid=uid, inode=inode)


def _listening_linux(inside: socket.socket | None = None) -> list[Listener]:
    try:
        return [_listener(*row) for row in listening_rows(inside)]
    except OSError:  # a sandbox whose kernel has no such query
        return _listening_proc("/proc/net") or [] if inside is None else []


def _listening_proc(folder: str) -> list[Listener] | None:
    """Read the listening sockets of a namespace; None where its process has ended meanwhile."""
    found: list[Listener] = []
    # A kernel without IPv6 has no tcp6. That the other is there proves that the process is, too.
    for version in ("6", ""):
        try:
            if _uses_tcp(Path(folder, f"sockstat{version}")):
                rows = _rows(f"{folder}/tcp{version}")
                # The kernel lists every listening socket before the first connection.
                found += [row for _, row in itertools.takewhile(lambda row: row[0], rows)]
        except OSError:
            if not version:
                return None
    return found


def _uses_tcp(sockstat: Path) -> bool:
    """Tell whether a namespace has any TCP socket that is connected or listens."""
    try:
        words = sockstat.read_bytes().split()
    except OSError:  # a sandbox whose kernel does not count
        return True
    return not any(
        name in {b"TCP:", b"TCP6:"} and (what, count) == (b"inuse", b"0")
        for name, what, count in zip(words, words[1:], words[2:], strict=False)
    )


def _rows(file: str) -> Iterator[tuple[bool, Listener]]:
    with Path(file).open("rb") as stream:
        next(stream, None)
        yield from map(parse_row, stream)


def _socket_inodes(pid: int) -> set[int]:
    inodes = set()
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - a Path for each descriptor would cost more than the calls
            with contextlib.suppress(OSError):
                target = os.readlink(f"{folder}/{name}")  # noqa: PTH115 - same
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


class _Tables:
    """The listening sockets of the network namespaces that processes are in, each read once."""

    def __init__(self, inside: socket.socket | None, pins: contextlib.ExitStack) -> None:
        """Keep namespaces open by `pins`, so that no other takes over the number of one."""
        self._pins = pins
        self._ours = _number("/proc/thread-self/ns/net")
        self._inside = inside
        self._theirs = namespace_of(inside) if inside is not None else None
        self._known: dict[int, list[Listener]] = {}

    def of(self, pid: int) -> list[Listener]:
        """Give those of the namespace that a process is in; none where it has ended."""
        namespace = self._namespace_of(pid)
        if namespace is None:
            return []
        if namespace not in self._known:
            rows = self._read(namespace, pid)
            if rows is None:
                return []
            self._known[namespace] = rows
        return self._known[namespace]

    def _namespace_of(self, pid: int) -> int | None:
        file = f"/proc/{pid}/ns/net"
        namespace = _number(file)
        if namespace in {None, self._ours, self._theirs}:
            return namespace  # the latter two cannot go away
        try:
            pin = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        self._pins.callback(os.close, pin)
        return os.fstat(pin).st_ino

    def _read(self, namespace: int, pid: int) -> list[Listener] | None:
        if namespace == self._ours:
            return _listening_linux()
        if self._inside is not None and self._theirs in {namespace, None}:
            return _listening_linux(self._inside)
        return _listening_proc(f"/proc/{pid}/net")


def _number(file: str) -> int | None:
    try:
        return os.stat(file).st_ino  # noqa: PTH116 - a Path would cost more than the call
    except OSError:
        return None


def _ports_of_proc(pid: int, tables: _Tables) -> tuple[int, ...]:
    inodes = _socket_inodes(pid)
    if not inodes:
        return ()
    return tuple(sorted({row.port for row in tables.of(pid) if row.inode in inodes}))


def _ports_of_psutil(pid: int) -> tuple[int, ...]:
    import psutil

    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return ()
    return tuple(sorted({c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}))


def _listening_psutil() -> Iterator[Listener]:
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        yield from _listening_by_process()
        return
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            yield Listener(
                port=connection.laddr.port, address=connection.laddr.ip, pid=connection.pid
            )


def _listening_by_process() -> Iterator[Listener]:
    """Ask process after process: macOS shows an ordinary user nothing else than its own."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr:
                    yield Listener(
                        port=connection.laddr.port, address=connection.laddr.ip, pid=process.pid
                    )


def _bindable_on(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address, port))
    except OSError as error:
        # EACCES: a privileged port. EADDRNOTAVAIL, EAFNOSUPPORT: no IPv6 here.
        return error.errno != errno.EADDRINUSE
    return True
