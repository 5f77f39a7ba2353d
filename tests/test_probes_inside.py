"""Servers that only a given function reaches, as in a network namespace, are probed in the same words."""

import asyncio
import contextlib
import gc
import itertools
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from harness import free_port
from insides import Inside, inside, users
from servers import missing, run

from e2e_runner.model import HttpProbe, Probe, TcpProbe
from e2e_runner.probes import Connect, NotReady, Ready, wait_ready

HERE = "127.0.0.1"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def connect_here(host: str, port: int) -> socket.socket:
    """Connect as the real one does, but in the network of this process."""
    connected = socket.socket()
    connected.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connected, (host, port))
    except BaseException:
        connected.close()
        raise
    return connected


def answering(data: bytes) -> Handler:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            await writer.drain()
        writer.close()

    return answer


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    await hang(reader, writer)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, listener: socket.socket | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    listening = listener or socket.create_server((HERE, 0))
    server = await asyncio.start_server(handler, sock=listening, ssl=tls)
    port: int = listening.getsockname()[1]
    try:
        yield port
    finally:
        server.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Make a server's side of TLS with a certificate that nobody has reason to trust."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-subj", "/CN=elsewhere", "-days", "1"),
                *("-keyout", str(key), "-out", str(cert)),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        missing("openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def status(line: str) -> bytes:
    return f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode()


async def until_again(
    probe: Probe, again: "asyncio.Future[None]", connect: Connect | None = None
) -> Ready | NotReady:
    """Probe until it is ready or a second attempt begins, by a clock that stands still."""
    return await wait_ready(probe, timeout=20, ended=again, clock=lambda: 0.0, connect=connect)


async def once(probe: Probe, connect: Connect) -> Ready | NotReady:
    """Probe once."""
    again = asyncio.get_running_loop().create_future()
    attempts = itertools.count(1)

    async def counted(host: str, port: int) -> socket.socket:
        if next(attempts) == 2:
            again.set_result(None)
        return await connect(host, port)

    return await until_again(probe, again, counted)


async def both(
    handler: Handler, scheme: str, tls: ssl.SSLContext | None = None
) -> tuple[Ready | NotReady, Ready | NotReady]:
    """Ask a server once directly, and once through a function that connects."""
    return (
        await _asked(handler, scheme, tls=tls, connect=None),
        await _asked(handler, scheme, tls=tls, connect=connect_here),
    )


async def _asked(
    handler: Handler, scheme: str, *, tls: ssl.SSLContext | None, connect: Connect | None
) -> Ready | NotReady:
    again = asyncio.get_running_loop().create_future()
    attempts = itertools.count(1)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(attempts) == 2:
            again.set_result(None)
        await handler(reader, writer)

    async with serving(counted, tls=tls) as port:
        url = f"{scheme}://{HERE}:{port}/health?a=b"
        probe = TcpProbe(host=HERE, port=port) if scheme == "tcp" else HttpProbe(url=url)
        return await until_again(probe, again, connect)


def same_words(directly: Ready | NotReady, through: Ready | NotReady) -> str:
    match directly, through:
        case Ready(answer=one), Ready(answer=other):
            assert one == other
            return one
        case NotReady(missing=one), NotReady(missing=other):
            (one, other) = (text.partition(": ")[2] for text in (one, other))  # without the URL
            assert one == other
            return one
    pytest.fail(f"{directly} and {through}")


# --- the same words as without -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answering(status("200 OK")), "200 OK"),
        (answering(status("302 Found")), "302 Found"),
        (endless, "200 OK"),
        (answering(status("503 Service Unavailable")), "last answer: 503 Service Unavailable"),
        (answering(b""), "no valid answer: Server disconnected without sending a response."),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), "no valid answer: "),
        (reset, "connection reset by the server"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_answer_is_told_as_it_is_elsewhere(
    handler: Handler, words: str, scheme: str, certificate: ssl.SSLContext
) -> None:
    tls = certificate if scheme == "https" else None
    assert same_words(*run(both(handler, scheme, tls))).startswith(words)


@pytest.mark.parametrize("scheme", ["http", "https", "tcp"])
def test_a_refused_connection_is_told_as_it_is_elsewhere(scheme: str) -> None:
    port = free_port()
    url = f"{scheme}://{HERE}:{port}"
    probe = TcpProbe(host=HERE, port=port) if scheme == "tcp" else HttpProbe(url=url)
    result = run(once(probe, connect_here))
    assert isinstance(result, NotReady)
    assert result.missing == f"{url}: connection refused"


def test_an_accepted_connection_is_told_as_it_is_elsewhere() -> None:
    assert same_words(*run(both(hang, "tcp"))) == "connection accepted"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (status("400 Bad Request"), "[SSL: WRONG_VERSION_NUMBER]"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE]"),
        (b"\x16\x03\x03", "EOF"),  # each Python has its own sentence
    ],
)
def test_what_is_wrong_with_tls_is_told_as_it_is_elsewhere(data: bytes, words: str) -> None:
    async def blurt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        writer.close()

    assert words in same_words(*run(both(blurt, "https")))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_answers(scheme: str) -> None:
    async def work() -> None:
        async with serving(hang) as port:
            url = f"{scheme}://{HERE}:{port}/"
            result = await wait_ready(HttpProbe(url=url), timeout=1, connect=connect_here)
        assert isinstance(result, NotReady)
        assert result.missing.startswith(f"{url}: no answer within ")

    run(work())


def test_a_server_that_is_ready_at_the_third_request() -> None:
    answers = iter([status("503 Busy"), status("503 Busy"), status("200 OK")])

    async def work() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answering(next(answers))(reader, writer)

        async with serving(answer) as port:
            probe = HttpProbe(url=f"http://{HERE}:{port}/")
            result = await wait_ready(probe, timeout=20, connect=connect_here)
        assert isinstance(result, Ready)
        assert result.attempts == 3

    run(work())


# --- what the function does ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "asked"),
    [
        (HttpProbe(url="http://localhost:8000/x"), ("localhost", 8000)),
        (HttpProbe(url="http://db.internal/"), ("db.internal", 80)),
        (HttpProbe(url="https://[::1]/"), ("::1", 443)),
        (TcpProbe(host="0.0.0.0", port=5432), ("0.0.0.0", 5432)),  # noqa: S104 - asked for, not bound
    ],
)
def test_the_function_is_asked_for_what_the_probe_names(
    probe: Probe, asked: tuple[str, int]
) -> None:
    calls: list[tuple[str, int]] = []

    async def unreachable(host: str, port: int) -> socket.socket:
        calls.append((host, port))
        raise OSError(101, "Network is unreachable")

    result = run(once(probe, unreachable))
    assert isinstance(result, NotReady)
    assert result.missing.endswith(": Network is unreachable")
    assert set(calls) == {asked}


async def _never(host: str, port: int) -> socket.socket:
    raise AssertionError(await asyncio.Event().wait(), host, port)


@pytest.mark.parametrize("url", [f"http://{HERE}:1/", f"tcp://{HERE}:1"])
def test_a_function_that_takes_too_long_is_no_answer(url: str) -> None:
    probe = HttpProbe(url=url) if url.startswith("http") else TcpProbe(host=HERE, port=1)
    result = run(wait_ready(probe, timeout=0.3, connect=_never))
    assert isinstance(result, NotReady)
    assert result.missing.startswith(f"{url}: no answer within ")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_connection_is_left(scheme: str) -> None:
    made: list[socket.socket] = []

    async def noted(host: str, port: int) -> socket.socket:
        made.append(await connect_here(host, port))
        return made[-1]

    async def work() -> None:
        async with serving(hang) as port:
            probe = HttpProbe(url=f"{scheme}://{HERE}:{port}/")
            assert isinstance(await wait_ready(probe, timeout=0.1, connect=noted), NotReady)
            waiting = asyncio.create_task(wait_ready(probe, timeout=60, connect=noted))
            known = len(made)
            while len(made) == known:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert [each.fileno() for each in made] == [-1] * len(made)

    run(work())
    gc.collect()


# --- in a network namespace ----------------------------------------------------------------------


def connecting(other: Inside) -> Connect:
    async def connect(host: str, port: int) -> socket.socket:
        connected = other.unconnected()
        connected.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connected, (host, port))
        except BaseException:
            connected.close()
            raise
        return connected

    return connect


@pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="no network namespaces here")
@pytest.mark.parametrize("user", users())
def test_a_server_in_a_network_namespace_is_reached(user: int | None) -> None:
    async def work() -> None:
        with inside(user) as other:
            connect = connecting(other)
            async with serving(answering(status("200 OK"))) as port:
                # There is a server at this port, but not in there.
                url = f"http://{HERE}:{port}/"
                refused = await once(HttpProbe(url=url), connect)
                assert isinstance(refused, NotReady)
                assert refused.missing == f"{url}: connection refused"
            async with serving(answering(status("204 No Content")), other.listen(8000)):
                http = HttpProbe(url=f"http://{HERE}:8000/")
                ready = await wait_ready(http, timeout=20, connect=connect)
                assert isinstance(ready, Ready)
                assert ready.answer == "204 No Content"
                tcp = TcpProbe(host=HERE, port=8000)
                assert isinstance(await wait_ready(tcp, timeout=20, connect=connect), Ready)

    run(work())
