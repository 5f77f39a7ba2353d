"""Relays: what connects to a listening socket is passed on to a service elsewhere, byte by byte."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Self, assert_never

from e2e_runner.model import Endpoint
from e2e_runner.text import one_line

Target = Endpoint | Path | Callable[[], Awaitable[socket.socket]]
"""A TCP service, the path of a Unix socket, or what gives a connected socket."""

_CHUNK = 64 * 1024  # bytes that are passed on at a time, and the most that is kept of a flow
_ACCEPTED_AT_ONCE = 64  # connections, so that a flood does not hold up the rest of the loop
_ACCEPT_PAUSE = 0.1  # seconds without a new connection when the system has no means for one
_FULL_PAUSE = 0.01  # seconds until a Unix socket whose queue is full is asked again
_LAST_WORDS = 0.25  # seconds that what clients have sent already gets to arrive at a close
_LAST_WORDS_POLL = 0.002  # seconds
_MOST_TROUBLES = 8
_RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds: closing resets the connection


class Relay:
    """Serves a listening socket: each connection to it gets one to the target.

    Both directions are passed on, with their ends: one that is shut down is shut down on the other
    side, a reset resets it. A slow reader slows its writer down; no more than a chunk of each
    direction is held here. Where the target cannot be reached the client's connection is reset,
    and `troubles` says why.

    It needs a running loop, serves at once, and owns the listening socket from then on.
    """

    def __init__(self, listener: socket.socket, target: Target, *, name: str) -> None:
        """Serve `listener`, which listens already; `name` is what troubles call the target."""
        self._listener = listener
        self._target = target
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(_CHUNK))  # never holds anything between two callbacks
        self._connecting: dict[asyncio.Task[None], socket.socket] = {}
        self._connections: set[_Connection] = set()
        self._resuming: asyncio.TimerHandle | None = None
        self._troubles: dict[str, None] = {}
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def troubles(self) -> tuple[str, ...]:
        """Say why clients were turned away, each reason once: "localhost:6379: Connection refused"."""
        return tuple(self._troubles)

    async def close(self) -> None:
        """End it, with all its connections.

        What clients have sent by now still gets a moment to arrive, as it would have without a
        relay: a client may send and exit. Closing twice is no error.
        """
        try:
            if self._listener.fileno() >= 0:
                self._accept()
                self._stop_listening()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    while self._has_last_words():  # noqa: ASYNC110 - no event tells it
                        await asyncio.sleep(_LAST_WORDS_POLL)
        finally:
            self._stop_listening()
            for connection in tuple(self._connections):
                connection.close()
            tasks = set(self._connecting)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _has_last_words(self) -> bool:
        return bool(self._connecting) or any(each.has_last_words() for each in self._connections)

    def _stop_listening(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptors or no memory: the client waits meanwhile
                self._note(error)
                self._loop.remove_reader(self._listener)
                self._resuming = self._loop.call_later(_ACCEPT_PAUSE, self._resume)
                return
            client.setblocking(False)
            task = self._loop.create_task(self._serve(client))
            self._connecting[task] = client
            task.add_done_callback(self._served)

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def _served(self, task: asyncio.Task[None]) -> None:
        client = self._connecting.pop(task)
        if task.cancelled():  # perhaps before its first step
            client.close()

    async def _serve(self, client: socket.socket) -> None:
        try:
            server = await _connected(self._target)
        except Exception as error:  # noqa: BLE001 - whatever a target's own function raises is the client's trouble alone
            self._note(error)
            _close(client, reset=True)
            return
        for each in (client, server):
            if each.family in {socket.AF_INET, socket.AF_INET6}:
                with contextlib.suppress(OSError):  # reset already, which the flow will tell
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, server, self._buffer, self._connections.discard)
        self._connections.add(connection)

    def _note(self, error: BaseException) -> None:
        if len(self._troubles) < _MOST_TROUBLES:
            self._troubles[one_line(f"{self._name}: {_reason(error)}")] = None


class _Connection:
    """A client and the server that it talks to; it ends by itself when both directions have."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        buffer: memoryview,
        at_end: "Callable[[_Connection], None]",
    ) -> None:
        self._sockets = (client, server)
        self._at_end = at_end
        self._up = _Flow(client, server, buffer, self._flow_ended, self.close)
        self._down = _Flow(server, client, buffer, self._flow_ended, self.close)

    def has_last_words(self) -> bool:
        """Tell whether the client has sent what is not passed on yet, its end included."""
        return self._up.has_more()

    def close(self, *, reset: bool = False) -> None:
        self._up.stop()
        self._down.stop()
        for each in self._sockets:
            _close(each, reset=reset)
        self._at_end(self)

    def _flow_ended(self) -> None:
        if self._up.is_over and self._down.is_over:
            self.close(reset=self._up.is_broken or self._down.is_broken)


class _Flow:
    """One direction: what `source` says is said to `sink`."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        buffer: memoryview,
        at_end: Callable[[], None],
        break_off: Callable[..., None],
    ) -> None:
        self.is_over = False
        self.is_broken = False  # over since nobody takes it any more
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._at_end = at_end
        self._break_off = break_off
        self._rest = memoryview(b"")  # what the sink has not taken; nothing more is read meanwhile
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._readable)

    def stop(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._sink)

    def has_more(self) -> bool:
        if self.is_over:
            return False
        if self._rest:
            return True
        try:
            self._source.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # its reset is passed on at once
            return True
        return True

    def _readable(self) -> None:
        try:
            count = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # reset: nobody is left to hear the other direction either
            self._break_off(reset=True)
            return
        try:
            if not count:
                self._sink.shutdown(socket.SHUT_WR)
                self._end()
                return
            sent = self._send(self._buffer[:count])
        except OSError:
            # What the sink itself said before it went away is still passed on.
            self._end(broken=True)
            return
        if sent < count:
            self._rest = memoryview(bytes(self._buffer[sent:count]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        try:
            self._rest = self._rest[self._send(self._rest) :]
        except OSError:
            self._end(broken=True)
            return
        if not self._rest:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._readable)

    def _send(self, data: memoryview) -> int:
        try:
            return self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def _end(self, *, broken: bool = False) -> None:
        self.is_broken = broken
        self.stop()
        self._at_end()


async def _connected(target: Target) -> socket.socket:
    match target:
        case Endpoint():
            return await _connected_by_tcp(target)
        case Path():
            return await _connected_by_path(target)
        case _ if callable(target):
            server = await target()
            server.setblocking(False)
            return server
        case _:
            assert_never(target)


async def _connected_by_tcp(target: Endpoint) -> socket.socket:
    """Try the addresses of a name in turn; the reason of the last one is told, a refusal before all."""
    failures: list[OSError] = []
    for family, address in await _addresses(target):
        try:
            return await _connected_to(family, address)
        except OSError as error:
            failures.append(error)
    refusals = [each for each in failures if isinstance(each, ConnectionRefusedError)]
    raise [*failures, *refusals][-1]


async def _addresses(target: Endpoint) -> list[tuple[int, tuple[object, ...]]]:
    with contextlib.suppress(ValueError):
        version = ip_address(target.host).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6  # noqa: PLR2004 - of the protocol's name
        return [(family, (target.host, target.port))]
    found = await asyncio.get_running_loop().getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    )
    return [(family, address) for family, *_, address in found]


async def _connected_to(family: int, address: tuple[object, ...]) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(server, address)
    except BaseException:
        server.close()
        raise
    return server


async def _connected_by_path(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setblocking(False)
    try:
        while True:
            try:
                server.connect(str(path))
            except BlockingIOError:  # its queue is full, and nothing tells when it no longer is
                await asyncio.sleep(_FULL_PAUSE)
            else:
                return server
    except BaseException:
        server.close()
        raise


def _close(connected: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connected.close()


def _reason(error: BaseException) -> str:
    # asyncio puts words of its own in place of the system's.
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
