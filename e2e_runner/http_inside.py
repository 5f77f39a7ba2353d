"""HTTP through connections that somebody else makes, such as into another network namespace."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

import httpcore
import httpx

_T = TypeVar("_T")

_CHUNK = 64 * 1024  # bytes
_AS_HTTPX: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.TimeoutException, httpx.TimeoutException),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
    (httpcore.NetworkError, httpx.NetworkError),
)


class Transport(httpx.AsyncBaseTransport):
    """A transport of httpx for servers that `connect(host, port)` reaches; it trusts any certificate.

    `connect` gives a connected socket that does not block.
    """

    def __init__(self, connect: Callable[[str, int], Awaitable[socket.socket]]) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=False, trust_env=False),
            max_keepalive_connections=0,
            network_backend=_Backend(connect),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; raises httpx.TransportError."""
        with _raised_as_httpx():
            answer = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close what is open."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _raised_as_httpx():
            async for part in self._answer.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, connect: Callable[[str, int], Awaitable[socket.socket]]) -> None:
        self._connect = connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature, here and below
        local_address: str | None = None,  # noqa: ARG002 - nobody asks for one
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - same
    ) -> httpcore.AsyncNetworkStream:
        with _raised_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                return _Plain(await self._connect(host, port))


class _Plain(httpcore.AsyncNetworkStream):
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with _raised_as(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self.receive(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        with _raised_as(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                await self.send(buffer)

    async def aclose(self) -> None:
        self.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _raised_as(httpcore.ConnectTimeout, httpcore.ConnectError):
                async with asyncio.timeout(timeout):
                    return await _Tls.agreed(self, ssl_context, server_hostname)
        except BaseException:  # whoever asked does not know of it yet
            self.close()
            raise

    async def receive(self, most: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, most)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()


class _Tls(httpcore.AsyncNetworkStream):
    def __init__(self, plain: _Plain, context: ssl.SSLContext, hostname: str | None) -> None:
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    @classmethod
    async def agreed(cls, plain: _Plain, context: ssl.SSLContext, hostname: str | None) -> "_Tls":
        stream = cls(plain, context, hostname)
        await stream._done(stream._session.do_handshake)
        return stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with _raised_as(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                try:
                    return await self._done(lambda: self._session.read(max_bytes))
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        with _raised_as(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                await self._done(lambda: self._session.write(buffer))

    async def aclose(self) -> None:
        self._plain.close()

    def get_extra_info(self, info: str) -> Any:
        return self._session if info == "ssl_object" else None

    async def _done(self, act: Callable[[], _T]) -> _T:
        """Do something that may need what the other side has not sent yet."""
        while True:
            # What fails after a want of data is not for that want: no error is handled meanwhile.
            with contextlib.suppress(ssl.SSLWantReadError):
                result = act()
                await self._plain.send(self._outgoing.read())
                return result
            await self._plain.send(self._outgoing.read())
            if data := await self._plain.receive(_CHUNK):
                self._incoming.write(data)
            else:
                self._incoming.write_eof()


@contextlib.contextmanager
def _raised_as(timeout: type[Exception], error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as raised:
        raise timeout(str(raised)) from raised
    except OSError as raised:
        raise error(str(raised)) from raised


@contextlib.contextmanager
def _raised_as_httpx() -> Iterator[None]:
    try:
        yield
    except Exception as raised:
        for own, public in _AS_HTTPX:
            if isinstance(raised, own):
                raise public(str(raised)) from raised
        raise
