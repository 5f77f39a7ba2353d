"""Relays between real sockets: data, ends, resets, slow readers, and what is left (nothing)."""

import asyncio
import contextlib
import functools
import gc
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import free_port
from insides import inside, users

from e2e_runner import relay as module
from e2e_runner.model import Endpoint
from e2e_runner.relay import Relay, Target

HERE = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds: closing resets

Handler = Callable[[socket.socket], Awaitable[None]]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, which leaves no task and no descriptor."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = _descriptors()
    asyncio.run(bounded())
    gc.collect()
    assert _descriptors() == before


def _descriptors() -> set[str]:
    # The one that reads the folder is closed by now.
    return {entry.name for entry in list(Path("/dev/fd").iterdir()) if entry.is_symlink()}


def _listener() -> socket.socket:
    return socket.create_server((HERE, 0), backlog=1000)


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def server(handler: Handler, listener: socket.socket | None = None) -> AsyncIterator[int]:
    """Serve each connection by a task of its own; gives the port."""
    listening = listener or _listener()
    listening.setblocking(False)
    loop = asyncio.get_running_loop()

    async def handle(connected: socket.socket) -> None:
        with connected:
            await handler(connected)

    async def accept(tasks: asyncio.TaskGroup) -> None:
        while True:
            connected, _ = await loop.sock_accept(listening)
            tasks.create_task(handle(connected))

    with listening:
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(accept(tasks))
            await asyncio.sleep(0)  # it waits for clients from now on
            yield _port(listening) if listening.family == socket.AF_INET else 0
            accepting.cancel()


@contextlib.asynccontextmanager
async def relayed(target: Target, *, name: str = "target") -> AsyncIterator[tuple[Relay, int]]:
    listener = _listener()
    port = _port(listener)
    async with Relay(listener, target, name=name) as relay:
        yield relay, port
    assert listener.fileno() < 0
    assert not relay._connections
    assert not relay._connecting


async def connect(port: int) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(client, (HERE, port))
    except OSError:
        client.close()
        raise
    return client


async def happened(fact: Callable[[], object]) -> None:
    """Let the loop work until a fact holds; the test's own time limit ends it."""
    while not fact():  # noqa: ASYNC110 - what is waited for tells nobody
        await asyncio.sleep(0)


async def send(connected: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connected, data)


async def receive(connected: socket.socket, most: int = 1 << 20) -> bytes:
    return await asyncio.get_running_loop().sock_recv(connected, most)


async def receive_all(connected: socket.socket) -> bytes:
    parts = []
    while part := await receive(connected):
        parts.append(part)
    return b"".join(parts)


async def echo(connected: socket.socket) -> None:
    while data := await receive(connected):
        await send(connected, data)


def here(port: int) -> Endpoint:
    return Endpoint(host=HERE, port=port)


# --- data and its ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", [HERE, "localhost"])
def test_what_is_said_arrives_on_both_sides(host: str) -> None:
    async def work() -> None:
        async with server(echo) as port, relayed(Endpoint(host=host, port=port)) as (_, entry):
            with await connect(entry) as client:
                for word in (b"one", b"two"):
                    await send(client, word)
                    assert await receive(client) == word

    run(work())


def test_a_unix_socket_is_a_target(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        async with server(echo, listener), relayed(path) as (_, entry):
            with await connect(entry) as client:
                await send(client, b"word")
                assert await receive(client) == b"word"

    run(work())


def test_a_function_that_connects_is_a_target() -> None:
    async def work() -> None:
        async with server(echo) as port, relayed(functools.partial(connect, port)) as (_, entry):
            with await connect(entry) as client:
                await send(client, b"word")
                assert await receive(client) == b"word"

    run(work())


def test_a_client_that_has_said_all_still_gets_the_answer() -> None:
    async def answer(connected: socket.socket) -> None:
        heard = await receive_all(connected)
        await send(connected, b"heard " + heard)

    async def work() -> None:
        async with server(answer) as port, relayed(here(port)) as (_, entry):
            with await connect(entry) as client:
                await send(client, b"all")
                client.shutdown(socket.SHUT_WR)
                assert await receive_all(client) == b"heard all"

    run(work())


def test_a_server_that_has_said_all_still_hears_the_client() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def greet(connected: socket.socket) -> None:
        await send(connected, b"hello")
        connected.shutdown(socket.SHUT_WR)
        await heard.put(await receive_all(connected))

    async def work() -> None:
        async with server(greet) as port, relayed(here(port)) as (_, entry):
            with await connect(entry) as client:
                assert await receive_all(client) == b"hello"
                await send(client, b"I heard")
                client.shutdown(socket.SHUT_WR)
                assert await heard.get() == b"I heard"

    run(work())


def test_much_goes_both_ways_at_once() -> None:
    data = os.urandom(1 << 20) * 20

    async def work() -> None:
        async with server(echo) as port, relayed(here(port)) as (_, entry):
            with await connect(entry) as client:

                async def say() -> None:
                    await send(client, data)
                    client.shutdown(socket.SHUT_WR)

                saying = asyncio.create_task(say())
                assert await receive_all(client) == data
                await saying

    run(work())


def test_a_slow_reader_slows_its_writer_down_and_gets_all() -> None:
    may_read = asyncio.Event()
    result: asyncio.Queue[int] = asyncio.Queue()
    total = 64 << 20

    async def reader(connected: socket.socket) -> None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        await may_read.wait()
        await result.put(len(await receive_all(connected)))

    async def work() -> None:
        async with server(reader) as port, relayed(here(port)) as (relay, entry):
            with await connect(entry) as client:
                sending = asyncio.create_task(send(client, bytes(total)))
                await happened(lambda: any(each._up._rest for each in relay._connections))
                (connection,) = relay._connections
                # What the kernel's queues and one chunk do not hold is still with the client.
                await asyncio.wait({sending}, timeout=0.2)
                assert not sending.done()
                assert 0 < len(connection._up._rest) <= module._CHUNK
                may_read.set()
                await sending
                client.shutdown(socket.SHUT_WR)
                assert await result.get() == total

    run(work())


def test_a_round_trip_waits_for_nothing() -> None:
    async def work() -> None:
        async with server(echo) as port, relayed(here(port)) as (relay, entry):
            with await connect(entry) as client:
                await send(client, b"x")
                assert await receive(client) == b"x"
                (connection,) = relay._connections
                for each in connection._sockets:
                    assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(work())


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("a process may not have 5000 descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_connections_at_once() -> None:
    async def work() -> None:
        async with server(echo) as port, relayed(here(port)) as (relay, entry):
            with contextlib.ExitStack() as clients:

                async def talk(number: int) -> socket.socket:
                    client = clients.enter_context(await connect(entry))
                    await send(client, b"%d" % number)
                    assert await receive(client) == b"%d" % number
                    return client

                made = await asyncio.gather(*(talk(number) for number in range(1000)))
                assert len(relay._connections) == 1000
                for client in made:
                    client.shutdown(socket.SHUT_WR)
                for client in made:
                    assert await receive(client) == b""
            assert relay.troubles == ()

    run(work())


# --- what goes wrong -----------------------------------------------------------------------------


async def _is_reset(client: socket.socket) -> bool:
    try:
        await receive(client)
    except ConnectionResetError:
        return True
    return False


def _failing(error: Exception) -> Callable[[], Awaitable[socket.socket]]:
    async def fail() -> socket.socket:
        raise error

    return fail


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (Endpoint(host=HERE, port=0), "Connection refused"),
        (Endpoint(host="localhost", port=0), "Connection refused"),
        (Endpoint(host="no-such-host.invalid", port=80), "Name or service not known"),
        (Path("/no/such/socket"), "No such file or directory"),
        (_failing(RuntimeError("the network\nis gone")), r"the network\nis gone"),
        (_failing(ConnectionRefusedError()), "ConnectionRefusedError"),
    ],
)
def test_a_target_that_cannot_be_reached_resets_the_client_and_is_told(
    target: Target, reason: str
) -> None:
    if isinstance(target, Endpoint) and not target.port:
        target = Endpoint(host=target.host, port=free_port())

    async def work() -> None:
        async with relayed(target, name="redis:6379") as (relay, entry):
            for _ in range(2):
                with await connect(entry) as client:
                    assert await _is_reset(client)
            if "Name" in reason:  # a machine without a network says it in words of its own
                assert relay.troubles[0].startswith("redis:6379: ")
                assert "[" not in relay.troubles[0]
            else:
                assert relay.troubles == (f"redis:6379: {reason}",)

    run(work())


def test_only_some_troubles_are_kept() -> None:
    numbers = iter(range(100))

    async def fail() -> socket.socket:
        raise OSError(f"number {next(numbers)}")

    async def work() -> None:
        async with relayed(fail) as (relay, entry):
            for _ in range(20):
                with await connect(entry) as client:
                    assert await _is_reset(client)
            assert relay.troubles == tuple(f"target: number {number}" for number in range(8))

    run(work())


def test_a_target_that_comes_later_is_reached() -> None:
    async def work() -> None:
        port = free_port()
        async with relayed(here(port)) as (_, entry):
            with await connect(entry) as client:
                assert await _is_reset(client)
            async with server(echo, socket.create_server((HERE, port))):
                with await connect(entry) as client:
                    await send(client, b"x")
                    assert await receive(client) == b"x"

    run(work())


def test_a_reset_by_the_server_resets_the_client_after_what_was_said() -> None:
    async def break_off(connected: socket.socket) -> None:
        await send(connected, b"last words")
        assert await receive(connected) == b"ok"
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def work() -> None:
        async with server(break_off) as port, relayed(here(port)) as (relay, entry):
            with await connect(entry) as client:
                assert await receive(client) == b"last words"
                await send(client, b"ok")
                assert await _is_reset(client)
                assert not relay._connections

    run(work())


def test_a_reset_by_the_client_resets_the_server() -> None:
    seen: asyncio.Queue[bool] = asyncio.Queue()

    async def look(connected: socket.socket) -> None:
        await send(connected, b"hello")
        await seen.put(await _is_reset(connected))

    async def work() -> None:
        async with server(look) as port, relayed(here(port)) as (_, entry):
            client = await connect(entry)
            assert await receive(client) == b"hello"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            assert await seen.get()

    run(work())


def test_what_a_client_said_arrives_though_it_reads_no_answer() -> None:
    """A client that closes with an answer unread resets its connection; what it had said counts."""
    closed = asyncio.Event()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def greet(connected: socket.socket) -> None:
        await send(connected, b"hello")
        await closed.wait()
        await heard.put(await receive(connected))
        assert await _is_reset(connected)

    async def work() -> None:
        async with server(greet) as port, relayed(here(port)) as (_, entry):
            with await connect(entry) as client:
                assert await receive(client, 1) == b"h"
                await send(client, b"said")
            closed.set()
            assert await heard.get() == b"said"

    run(work())


def test_what_a_server_says_to_a_client_that_is_gone_is_not_in_the_way_of_what_that_said() -> None:
    async def work() -> None:
        client, ours = socket.socketpair()
        theirs, peer = socket.socketpair()
        with client, peer:
            for each in (client, ours, theirs, peer):
                each.setblocking(False)
            ended: list[object] = []
            connection = module._Connection(ours, theirs, memoryview(bytearray(100)), ended.append)
            # The client has said much and is gone; the server says something before it hears it.
            assert client.send(b"x" * 1000) == 1000
            client.close()
            peer.send(b"answer")
            assert len(await receive_all(peer)) == 1000
            peer.close()
            await happened(lambda: ended)
            assert ended == [connection]

    run(work())


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in _descriptors())
    with contextlib.ExitStack() as holes:
        while (filled := os.dup(0)) < highest:
            holes.callback(os.close, filled)
        holes.callback(os.close, filled)
        resource.setrlimit(resource.RLIMIT_NOFILE, (filled + 1, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_clients_wait_until_there_are_some_again() -> None:
    async def work() -> None:
        async with server(echo) as port, relayed(here(port)) as (relay, entry):
            with socket.socket() as client:
                client.setblocking(False)
                with no_more_descriptors():
                    await asyncio.get_running_loop().sock_connect(client, (HERE, entry))
                    await happened(lambda: relay.troubles)
                await send(client, b"x")
                assert await receive(client) == b"x"
            assert relay.troubles == ("target: Too many open files",)

    run(work())


# --- the end of a relay --------------------------------------------------------------------------


def test_closing_ends_all_connections() -> None:
    async def work() -> None:
        async with server(echo) as port:
            async with relayed(here(port)) as (relay, entry):
                client = await connect(entry)
                await send(client, b"x")
                assert await receive(client) == b"x"
                await relay.close()
            with client:
                assert await receive(client) == b""
            with pytest.raises(ConnectionRefusedError):
                await connect(entry)

    run(work())


def test_what_was_sent_before_the_close_arrives() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    data = os.urandom(1 << 18)

    async def listen(connected: socket.socket) -> None:
        await heard.put(await receive_all(connected))

    async def work() -> None:
        async with server(listen) as port:
            async with relayed(here(port)) as (relay, entry):
                # Nothing of it has reached the relay when it is closed.
                with socket.create_connection((HERE, entry)) as client:
                    client.setblocking(False)
                    sent = client.send(data)
                await relay.close()
            assert await heard.get() == data[:sent]

    run(work())


def test_a_close_that_is_cancelled_leaves_nothing() -> None:
    async def work() -> None:
        connecting = asyncio.Event()

        async def never() -> socket.socket:
            connecting.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with relayed(never) as (relay, entry):
            with await connect(entry) as client:
                await connecting.wait()
                closing = asyncio.create_task(relay.close())
                await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait({closing})
                assert closing.cancelled()
                assert await receive(client) == b""
                assert not relay._connecting

    run(work())


def test_a_target_that_never_answers_holds_a_close_up_for_a_moment_only() -> None:
    async def work() -> None:
        async def never() -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

        loop = asyncio.get_running_loop()
        async with relayed(never) as (relay, entry):
            with await connect(entry):
                before = loop.time()
                await relay.close()
                assert loop.time() - before < 10

    run(work())


def test_a_client_whose_connecting_is_cancelled_by_others_is_closed() -> None:
    async def work() -> None:
        async def never() -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

        async with relayed(never) as (relay, entry):
            with await connect(entry) as client:
                await happened(lambda: relay._connecting)
                for task in relay._connecting:
                    task.cancel()  # as asyncio.run does with every task at its end
                assert await receive(client) == b""

    run(work())


# --- out of a network namespace ------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="no network namespaces here")
@pytest.mark.parametrize("user", users())
def test_a_service_of_the_machine_is_reached_from_a_network_namespace(user: int | None) -> None:
    async def work() -> None:
        with inside(user) as other:
            async with (
                server(echo) as port,
                Relay(other.listen(6379), here(port), name="redis") as relay,
            ):
                client = other.unconnected()
                with client:
                    client.setblocking(False)
                    loop = asyncio.get_running_loop()
                    await loop.sock_connect(client, (HERE, 6379))
                    await send(client, b"from inside")
                    assert await receive(client) == b"from inside"
                assert relay.troubles == ()

    run(work())
