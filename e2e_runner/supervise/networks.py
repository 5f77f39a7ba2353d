"""The runner's side of network namespaces: networks for attempts, and sockets inside them."""

import asyncio
import collections
import contextlib
import errno
import ipaddress
import os
import resource
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2e_runner.model import NetworkTier
from e2e_runner.supervise.child import Channel, StartError, SupervisionLost, fail
from e2e_runner.supervise.wire import Message, send

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 20.0  # seconds for one answer; a network takes a thousandth of one
# Questions under way at a time: more would fill the sockets while each side waits for the other.
_WINDOW = 32
_DESCRIPTORS = 65536  # open files that suffice for any run


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """What a network itself has refused so far, but for what this process was refused there."""

    connections: int  # TCP connections to a port where nothing listened
    no_route: int  # connections and datagrams to addresses beyond the network
    datagrams: (
        int  # UDP datagrams to a port where nothing listened, such as questions to a DNS server
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    message: Message
    fds: tuple[int, ...]

    def drop(self) -> None:
        for fd in self.fds:
            os.close(fd)


class _Maker(Channel):
    """The channel to the network maker; see `netns` for the messages."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        super().__init__(sock)
        self._patience = patience
        self._why_lost = "was killed"
        self.found: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self.gone = False
        self._answers: collections.deque[asyncio.Future[_Answer]] = collections.deque()
        self._window = asyncio.Semaphore(_WINDOW)

    async def ask(self, question: Message, fds: tuple[int, ...] = ()) -> _Answer:
        """Ask, and give the answer. Raises SupervisionLost, or OSError as the maker met it.

        Where no answer comes, there is none to any other question either.
        """
        await self._window.acquire()
        if self.gone or self.sock.fileno() < 0:
            self._window.release()
            raise self._lost()
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        try:
            send(self.sock, question, fds)
        except BrokenPipeError as error:
            self._window.release()
            raise self._lost() from error
        except BaseException:
            self._window.release()
            raise
        self._answers.append(answer)
        given = await self._wait(answer)
        match given.message:
            case ("failed", int(number), str(what)):
                raise OSError(number, os.strerror(number), what)
        return given

    async def findings(self) -> _Answer:
        """Wait for what the maker has found out. Raises SupervisionLost."""
        return await self._wait(self.found)

    def received(self, message: Message) -> None:
        """Take what the maker says."""
        answer = _Answer(message=message, fds=self._reader.take_fds(_fds_of(message)))
        if message[0] == "networks":
            waiting = self.found
        else:
            waiting = self._answers.popleft()
            self._window.release()
        if waiting.done():
            answer.drop()
        else:
            waiting.set_result(answer)

    def ended(self) -> None:
        """Give up on every answer: the maker died, or had nothing to make."""
        self.gone = True
        fail(self.found, self._lost())
        while self._answers:
            fail(self._answers.popleft(), self._lost())
            self._window.release()

    async def _wait(self, answer: asyncio.Future[_Answer]) -> _Answer:
        """Wait for an answer; hang up where none comes, so that nobody waits again."""
        try:
            for _ in range(
                2
            ):  # this process may have been stopped itself, with the answer before it
                if (await asyncio.wait([answer], timeout=self._patience / 2))[0]:
                    return answer.result()
        except asyncio.CancelledError:
            if not answer.cancel() and answer.exception() is None:
                answer.result().drop()  # it came at the same moment
            raise
        answer.cancel()
        if not self.gone:
            self._why_lost = "does not answer"
            self.close()
            self.ended()
        raise self._lost()

    def _lost(self) -> SupervisionLost:
        return SupervisionLost(f"the process that makes networks {self._why_lost}")


class Network:
    """A network namespace of its own, with nothing but its loopback, until `close`.

    It lives on for as long as a script that was started in it does, or a socket that was opened in it.
    """

    def __init__(self, maker: _Maker, fd: int, siblings: "set[Network]") -> None:
        self._maker = maker
        self._fd = fd
        self._open = siblings
        self._refused = 0  # connections of our own that were
        self.hosts_file: Path | None = None  # stands at /etc/hosts for scripts started from now on
        self._open.add(self)

    def fileno(self) -> int:
        """Give the descriptor of the namespace. Raises SupervisionLost when it is closed."""
        if self._fd < 0:
            raise SupervisionLost("its network is closed")
        return self._fd

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a server in the network; the socket does not block.

        `host` is an IP address, or "localhost" for either loopback. Raises OSError when it is refused,
        SupervisionLost, and ValueError for any other name.
        """
        addresses = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        for address in addresses[:-1]:
            with contextlib.suppress(ConnectionRefusedError):
                return await self._connect(address, port)
        try:
            return await self._connect(addresses[-1], port)
        except OSError as error:
            # Without IPv6 the second try fails for a reason that says nothing of the server.
            if len(addresses) == 1 or isinstance(error, ConnectionRefusedError):
                raise
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)
            ) from error

    async def listen(self, address: str, port: int) -> socket.socket:
        """Listen in the network, at any IP address and port; the socket does not block.

        An address that is no loopback address is given to the network first, so that connections to it
        end here. Raises OSError (EADDRINUSE), SupervisionLost, ValueError.
        """
        wanted = str(ipaddress.ip_address(address))
        answer = await self._maker.ask(("listen", wanted, port), (self.fileno(),))
        return _socket(answer)

    async def diagnosis(self) -> socket.socket:
        """Give a socket by which anybody may ask who listens in the network (NETLINK_SOCK_DIAG).

        Raises OSError, SupervisionLost.
        """
        return _socket(await self._maker.ask(("diagnosis",), (self.fileno(),)))

    async def refusals(self) -> Refusals:
        """Read what the network has refused so far. Raises OSError, SupervisionLost."""
        answer = await self._maker.ask(("refusals",), (self.fileno(),))
        match answer.message:
            case ("refusals", int(connections), int(no_route), int(datagrams)):
                return Refusals(
                    connections=max(connections - self._refused, 0),
                    no_route=no_route,
                    datagrams=datagrams,
                )
        raise AssertionError(answer.message)

    def close(self) -> None:
        """Let go of it; harmless when it is done."""
        if self._fd >= 0:
            self._open.discard(self)
            os.close(self._fd)
            self._fd = -1

    async def _connect(self, address: str, port: int) -> socket.socket:
        ip = ipaddress.ip_address(address)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004 - of IP
        answer = await self._maker.ask(("socket", int(family)), (self.fileno(),))
        made = _socket(answer)
        try:
            await asyncio.get_running_loop().sock_connect(made, (str(ip), port))
        except BaseException as error:
            made.close()
            self._refused += isinstance(error, ConnectionRefusedError)
            raise
        return made


class Networks:
    """The networks of a run, where there are any: `tier` says how they are had."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        """Have none yet; `patience` is for one answer of the network maker, in seconds."""
        self._patience = patience
        self.tier = NetworkTier.HOST
        self.notes: tuple[str, ...] = ()  # why a better tier is not in force
        self.user_namespace: tuple[int, ...] = ()  # descriptors: it, and a network to wait in
        self._maker: _Maker | None = None
        self._ahead: asyncio.Task[Network] | None = None
        self._open: set[Network] = set()

    def attach(self, sock: socket.socket) -> None:
        """Take the socket to a network maker that is about to be forked."""
        self._maker = _Maker(sock, self._patience)

    async def found(self) -> None:
        """Wait for what the maker has found out; afterwards `tier` and `notes` say it."""
        if self._maker is None:
            return
        try:
            answer = await self._maker.findings()
        except SupervisionLost as error:
            self.notes = (str(error),)
            return
        match answer:
            case _Answer(message=("networks", str(tier), list(notes)), fds=fds):
                self.tier = NetworkTier(tier)
                self.notes = tuple(notes)
                self.user_namespace = fds
                self._make_ahead()

    async def give_up(self, why: str) -> None:
        """Do without networks after all, and note the reason."""
        await self.close()
        self.tier = NetworkTier.HOST
        self.notes = (*self.notes, why)

    async def open(self) -> Network:
        """Give a network of its own to an attempt.

        Raises StartError when the system makes no more of them, SupervisionLost when the maker has died
        or does not answer.
        """
        ahead, self._ahead = self._ahead, None
        self._make_ahead()
        if ahead is None:
            return await self._make()
        try:
            return await ahead
        except StartError:
            return await self._make()  # it may have been made too early, when too many were open
        except asyncio.CancelledError:
            ahead.add_done_callback(_close_made)
            raise

    def disinherit(self) -> None:
        """Close the descriptors in a forked process, so that it keeps nothing in being."""
        if self._maker is not None:
            self._maker.sock.close()
        for fd in (*(network.fileno() for network in self._open), *self.user_namespace):
            os.close(fd)

    async def close(self) -> None:
        """Hang up, and let go of every network."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait([self._ahead])
            _close_made(self._ahead)
            self._ahead = None
        for network in list(self._open):
            network.close()
        for fd in self.user_namespace:
            os.close(fd)
        self.user_namespace = ()
        if self._maker is not None:
            self._maker.close()
            self._maker.ended()

    def _make_ahead(self) -> None:
        if self.tier is not NetworkTier.HOST and self._maker is not None and not self._maker.gone:
            self._ahead = asyncio.create_task(self._make())
            self._ahead.add_done_callback(_seen)

    async def _make(self) -> Network:
        if self._maker is None or self.tier is NetworkTier.HOST:
            raise StartError("there are no networks to be had: " + "; ".join(self.notes))
        try:
            answer = await self._maker.ask(("make",))
        except OSError as error:
            limit = " (see user.max_net_namespaces)" if error.errno == errno.ENOSPC else ""
            raise StartError(
                f"no network could be made: {error.filename}: {error.strerror}{limit}"
            ) from error
        if not answer.fds:
            raise StartError(
                f"no network could be made: {os.strerror(errno.EMFILE)} (see ulimit -n)"
            )
        return Network(self._maker, answer.fds[0], self._open)


def raise_descriptor_limit() -> None:
    """Let this process have as many open files as it may: each network and keeper takes some.

    What was started before keeps its own limit, so scripts see the caller's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))


def _fds_of(message: Message) -> int:
    match message:
        case ("networks", "user-namespace", _):
            return 2
        case ("made" | "socket",):
            return 1
    return 0


def _socket(answer: _Answer) -> socket.socket:
    if not answer.fds:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    made = socket.socket(fileno=answer.fds[0])
    made.setblocking(False)  # it does not block as it is, but this object does not know
    return made


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever takes the network gets it again


def _close_made(task: asyncio.Task[Network]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
