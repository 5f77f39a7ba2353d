"""Network namespaces: the process that makes them, and how a keeper goes in and comes back.

The *network maker* is forked by the spawner, once a run. It keeps no network: each is a descriptor
that the runner holds, and is gone when that is closed and the last process in it has ended. Where it
takes a user namespace to have one, the maker enters one for the whole run, and keepers follow.

First of all it tells what it found::

    ("networks", tier, notes)   tier: "namespace", "user-namespace" or "host"; the second comes with
                                two descriptors: the user namespace, and a network to wait in

Then it answers questions from the runner, in their order. All but the first come with the descriptor
of a network::

    ("make",)                   ("made",) with the descriptor of the network
    ("socket", family)          ("socket",) with a TCP socket that is not yet connected
    ("listen", address, port)   ("socket",) with a socket that listens there
    ("diagnosis",)              ("socket",) with one of NETLINK_SOCK_DIAG
    ("refusals",)               ("refusals", connections, no_route, datagrams)

or ("failed", errno, what). The end of the stream from the runner means: go.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from e2e_runner.supervise.wire import Message, Reader, send

if sys.platform == "linux":
    from e2e_runner.supervise import linux

_HOSTS = b"/etc/hosts"
_SYSCTL = Path("/proc/sys")
_UNPRIVILEGED_PORTS = _SYSCTL / "net/ipv4/ip_unprivileged_port_start"
# What forbids user namespaces, by name and value, as the kernels of Ubuntu and Debian have it.
_FORBIDDING = {
    "kernel.apparmor_restrict_unprivileged_userns": "1",
    "kernel.unprivileged_userns_clone": "0",
}
_LIMITS = ("user.max_user_namespaces", "user.max_net_namespaces")

_RAISE_LO = "raise lo"  # what failed, in words

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_RTM_NEWADDR = 20
_RTM_GETROUTE = 26
_NLMSG_ERROR = 2
_NLM_REQUEST_ACK = 0x1 | 0x4
_NLM_CREATE_EXCL = 0x400 | 0x200
_RTA_DST = 1
_RTN_LOCAL = 2
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_F_NODAD = 0x02  # an IPv6 address that may be used at once
_ROUTE_TRIES = 1000  # a millisecond each
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE_TYPE = _HEADER.size + 7  # offset of rtm_type in an answer


# --- a keeper's side -----------------------------------------------------------------------------


class UserNamespace:
    """The user namespace of the run, that of the network maker."""

    def __init__(self, user: int, network: int) -> None:
        self._user = user
        self._network = network  # where a keeper is that no script has called elsewhere

    def enter(self) -> None:
        """Go there for good, with every capability in it. Raises OSError."""
        linux.setns(self._user, linux.CLONE_NEWUSER)
        linux.setns(self._network, linux.CLONE_NEWNET)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._user)
        os.close(self._network)


class Place:
    """Where a keeper starts a script: in which network, and with which /etc/hosts.

    The keeper is there for the moment of the start alone, so that it keeps no network in being and
    has nothing to undo for the next script.
    """

    def __init__(self, *, joined: bool) -> None:
        self._joined = joined  # the keeper is in the run's user namespace
        self._home = -1  # descriptors of where the keeper came from, once it has been away
        self._mounts = -1
        self._root = -1
        self._away: list[int] = []  # kinds of namespace that it is to go back to

    def enter(self, network: int) -> None:
        """Go into a network. Raises OSError."""
        if self._home < 0:
            self._home = linux.namespace("net")
        linux.setns(network, linux.CLONE_NEWNET)
        self._away.append(linux.CLONE_NEWNET)

    def replace_hosts(self, file: bytes) -> None:
        """Have `file` stand at /etc/hosts, in a mount namespace of the script's own. Raises OSError."""
        if self._mounts < 0:
            if self._joined:
                linux.unshare(linux.CLONE_NEWNS)  # there is no way back to the one of the host
            self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts = linux.namespace("mnt")
            linux.setns(mounts, linux.CLONE_NEWNS)  # the way back must be known to be open
            self._mounts = mounts
            self._restore_root()
        linux.unshare(linux.CLONE_NEWNS)
        self._away.append(linux.CLONE_NEWNS)
        linux.bind_file(file, _HOSTS)

    def leave(self) -> None:
        """Go back to where the keeper belongs. Raises OSError."""
        while self._away:
            kind = self._away.pop()
            if kind == linux.CLONE_NEWNS:
                linux.setns(self._mounts, kind)
                self._restore_root()
            else:
                linux.setns(self._home, kind)

    def _restore_root(self) -> None:
        # Entering a mount namespace leads to its own root, which is another one under chroot.
        os.fchdir(self._root)
        os.chroot(".")


# --- the maker -----------------------------------------------------------------------------------


class _Unavailable(Exception):  # noqa: N818 - a finding, not a failure
    """Networks cannot be had in this way, with the reason in words."""


class _Maker:
    """The maker's state and loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._reader = Reader()
        self._is_root = os.geteuid() == 0
        self._limits = {name: _sysctl(name) for name in _LIMITS}
        self._home = -1  # descriptor of the network that the maker is in between two questions
        self._unprivileged_ports = b""

    def find(self, *, user_namespace: bool) -> tuple[str, list[str]]:
        """Find out how networks can be had: the tier, and notes why it is not a better one.

        With `user_namespace` nothing else will do.
        """
        if sys.platform != "linux":
            return "host", ["network namespaces: only on Linux"]
        notes = []
        with contextlib.suppress(OSError):
            self._unprivileged_ports = _UNPRIVILEGED_PORTS.read_bytes()
        if user_namespace:
            notes.append("network namespace: the processes are contained in a user namespace here")
        else:
            try:
                self._find_plainly()
            except _Unavailable as error:
                notes.append(f"network namespace: {error}")
            else:
                return "namespace", notes
        try:
            self._find_in_user_namespace()
        except _Unavailable as error:
            notes.append(f"user namespace: {error}")
            return "host", notes
        return "user-namespace", notes

    def serve(self, tier: str, notes: list[str]) -> None:
        """Tell what was found, and serve the runner until it has gone."""
        if tier == "user-namespace":
            user = linux.namespace("user")
            send(self._control, ("networks", tier, notes), (user, self._home))
            os.close(user)
        else:
            send(self._control, ("networks", tier, notes))
        while tier != "host" and not self._reader.ended:
            self._reader.fill(self._control)
            for message in self._reader.messages():
                try:
                    self._answer(message)
                except BrokenPipeError:
                    return
                except OSError as error:
                    what = str(error.filename or error.strerror or error)
                    send(self._control, ("failed", error.errno or errno.EINVAL, what))

    def _answer(self, message: Message) -> None:
        match message:
            case ("make",):
                network = self._make()
                try:
                    send(self._control, ("made",), (network,))
                finally:
                    os.close(network)
            case ("socket", int(family)):
                with self._inside():
                    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with made:
                    send(self._control, ("socket",), (made.fileno(),))
            case ("listen", str(address), int(port)):
                with self._inside():
                    listening = _listen(address, port)
                with listening:
                    send(self._control, ("socket",), (listening.fileno(),))
            case ("diagnosis",):
                with self._inside():
                    made = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG)
                with made:
                    send(self._control, ("socket",), (made.fileno(),))
            case ("refusals",):
                with self._inside():
                    counted = _refusals()
                send(self._control, ("refusals", *counted))
            case _:
                raise AssertionError(message)

    def _find_plainly(self) -> None:
        try:
            self._home = linux.namespace("net")
            self._try_out()
        except OSError as error:
            if self._home >= 0:
                os.close(self._home)
            words = self._words(error, "user.max_net_namespaces")
            if error.errno == errno.EPERM:
                capability = "CAP_NET_ADMIN" if error.filename == _RAISE_LO else "CAP_SYS_ADMIN"
                words += f" (it needs {capability})"
            raise _Unavailable(words) from error

    def _find_in_user_namespace(self) -> None:
        try:
            linux.enter_user_namespace()
        except OSError as error:
            words = self._words(error, "user.max_user_namespaces")
            if error.errno == errno.EPERM and error.filename == linux.UID_MAP and self._is_root:
                words += " (root needs CAP_SETFCAP for it)"  # since Linux 5.12
            raise _Unavailable(words + _forbidding(error)) from error
        try:
            # From here on there is no way back to the network of the host.
            linux.unshare(linux.CLONE_NEWNET)
            self._home = linux.namespace("net")
            self._try_out()
        except OSError as error:
            words = self._words(error, "user.max_net_namespaces")
            raise _Unavailable(f"network namespace: {words}{_forbidding(error)}") from error

    def _try_out(self) -> None:
        """Make a network, go in, and have a connection. Raises OSError."""
        network = self._make()
        try:
            with (
                self._at(network),
                _listen("127.0.0.1", 0) as listening,
                socket.socket() as client,
            ):
                client.connect(listening.getsockname())
        finally:
            os.close(network)

    def _make(self) -> int:
        linux.unshare(linux.CLONE_NEWNET)
        try:
            network = linux.namespace("net")
            try:
                self._furnish()
            except BaseException:
                os.close(network)
                raise
        finally:
            linux.setns(self._home, linux.CLONE_NEWNET)
        return network

    def _furnish(self) -> None:
        """Make the network that this process is in usable. Raises OSError."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh14x", b"lo", _IFF_UP)  # struct ifreq
            try:
                fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
            except OSError as error:
                raise OSError(error.errno, error.strerror, _RAISE_LO) from error
        # In a container an ordinary user may have port 80, say; a fresh network knows nothing of it.
        if self._unprivileged_ports.strip() not in (b"", b"1024"):
            with contextlib.suppress(OSError):  # where /proc/sys is read-only
                _UNPRIVILEGED_PORTS.write_bytes(self._unprivileged_ports)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Be in the network that came with the question. Raises OSError."""
        fds = self._reader.take_fds(1)
        if not fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "the network maker")
        try:
            with self._at(fds[0]):
                yield
        finally:
            os.close(fds[0])

    @contextlib.contextmanager
    def _at(self, network: int) -> Iterator[None]:
        linux.setns(network, linux.CLONE_NEWNET)
        try:
            yield
        finally:
            linux.setns(self._home, linux.CLONE_NEWNET)

    def _words(self, error: OSError, limit: str) -> str:
        words = f"{error.filename or 'socket'}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EUSERS) and self._limits[limit]:
            return f"{words} ({limit}={self._limits[limit]})"
        return words


def make_networks(control: socket.socket, *, user_namespace: bool) -> NoReturn:
    """Be the network maker, in a freshly forked process, and end it.

    With `user_namespace`, networks must be in one, for the sake of keepers that are not privileged.
    """
    code = 70
    try:
        maker = _Maker(control)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            maker.serve(*maker.find(user_namespace=user_namespace))
        code = 0
    except BaseException:  # noqa: BLE001 - the end of the process, which says why
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _sysctl(name: str) -> str:
    with contextlib.suppress(OSError):
        return (_SYSCTL / name.replace(".", "/")).read_text(encoding="ascii").strip()
    return ""


def _forbidding(error: OSError) -> str:
    if error.errno not in (errno.EPERM, errno.EACCES):
        return ""
    found = [f"{name}={value}" for name, value in _FORBIDDING.items() if _sysctl(name) == value]
    return f" ({', '.join(found)} forbids it)" if found else ""


def _listen(address: str, port: int) -> socket.socket:
    """Listen in the network that this process is in. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    if any(packed) and not _is_loopback(packed):
        _add_address(family, packed)
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address, port))
        listening.listen(socket.SOMAXCONN)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_loopback(packed: bytes) -> bool:
    return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\1"  # noqa: PLR2004 - of IPv4


def _add_address(family: int, packed: bytes) -> None:
    """Give lo one more address, unless it has it. Raises OSError."""
    own = struct.pack(  # struct ifaddrmsg
        "=BBBBI", family, len(packed) * 8, _IFA_F_NODAD, 0, socket.if_nametoindex("lo")
    )
    own += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    answer = _ask_kernel(_RTM_NEWADDR, _NLM_CREATE_EXCL, own)
    number = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
    if number not in (0, errno.EEXIST):
        raise OSError(number, os.strerror(number), "add an address to lo")
    # The kernel adds the route to an IPv6 address a moment later. To ask for it leaves the counters of
    # refusals alone, which a connection that is tried too early does not.
    route = struct.pack("=BBBBBBBBI", family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)  # struct rtmsg
    route += _attribute(_RTA_DST, packed)
    for _ in range(_ROUTE_TRIES):
        answer = _ask_kernel(_RTM_GETROUTE, 0, route)
        if _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR and answer[_ROUTE_TYPE] == _RTN_LOCAL:
            return
        time.sleep(0.001)  # there is no event for it in this network alone
    raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH), "route to an address of lo")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _ask_kernel(kind: int, flags: int, body: bytes) -> bytes:
    """Send one request of rtnetlink(7), and give the answer: a header and what it is about."""
    header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_REQUEST_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.send(header + body)
        return route.recv(65536)


def _refusals() -> tuple[int, int, int]:
    """Read the counters of the network that this process is in. Raises OSError."""
    lines = Path("/proc/self/net/snmp").read_text(encoding="ascii").splitlines()
    counters = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol, *keys = names.split()
        counters.update(
            {
                protocol + key: int(value)
                for key, value in zip(keys, values.split()[1:], strict=True)
            }
        )
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        for line in Path("/proc/self/net/snmp6").read_text(encoding="ascii").splitlines():
            key, value = line.split()
            counters[key] = int(value)
    return (
        counters["Tcp:AttemptFails"],
        counters["Ip:OutNoRoutes"] + counters.get("Ip6OutNoRoutes", 0),
        counters["Udp:NoPorts"] + counters.get("Udp6NoPorts", 0),
    )
