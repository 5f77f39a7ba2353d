"""Waiting until a server is ready: it answers HTTP, accepts TCP, or has written a line."""

import asyncio
import codecs
import contextlib
import functools
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from io import FileIO
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never
from urllib.parse import urlsplit

from e2e_runner.model import HttpProbe, LogProbe, Probe, TcpProbe
from e2e_runner.text import duration, one_line, plural, shorten, strip_ansi

if TYPE_CHECKING:
    import httpx

_FIRST_PAUSE = 0.01  # seconds between attempts, growing
_LONGEST_PAUSE = 0.25
_PAUSE_GROWTH = 1.6
_FIRST_PATIENCE = 1.0  # seconds that an attempt may take; doubled whenever that was too short
_OVERTIME = 0.1  # seconds
_SILENCE = 0.2  # seconds without an answer that are worth telling
_FIRST_ERROR = 400  # the lowest HTTP status that is one
_CHUNK = 64 * 1024  # bytes
_LONGEST_LINE = 16 * 1024  # characters of an unfinished line that are kept
_SHOWN = 100  # characters
_STANDARD_PORTS = {"http": 80, "https": 443}

Connect = Callable[[str, int], Awaitable[socket.socket]]
"""Reaches a host and port where those have a meaning of their own; see `wait_ready`."""

_Attempt = Callable[[float], Awaitable[str]]  # may take so many seconds, else TimeoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The server is ready."""

    seconds: float
    attempts: int
    answer: str  # what said so: "200 OK", "connection accepted", the line of the output


@dataclass(frozen=True, slots=True, kw_only=True)
class NotReady:
    """The server did not become ready: the time was over, or its process ended first."""

    seconds: float
    attempts: int
    missing: str  # what was waited for, and what was seen instead
    ended: bool  # its process ended first

    def __str__(self) -> str:
        """Say all of it in one sentence."""
        when = "its process ended" if self.ended else "not ready"
        return (
            f"{when} after {duration(self.seconds)} "
            f"({plural(self.attempts, 'attempt')}): {self.missing}"
        )


async def wait_ready(
    probe: Probe,
    *,
    timeout: float,  # noqa: ASYNC109 - the end of the time is a result here, not an exception
    log: Path | None = None,
    ended: "asyncio.Future[Any] | None" = None,
    clock: Callable[[], float] = time.monotonic,
    stranger: "Callable[[], Awaitable[str]] | None" = None,
    connect: Connect | None = None,
) -> Ready | NotReady:
    """Ask until `probe` is content, for at most `timeout` seconds.

    `log` is the file that a `LogProbe` looks at, which need not exist yet. `ended` is done when the
    process ends, which ends the wait as well; it is never cancelled here. `stranger` says who has
    answered in the server's place, and gives an empty string where it was the server itself.
    `connect` reaches the server where it is in a network of its own: it gives a connected socket
    that does not block, or raises OSError. Raises ValueError for a `LogProbe` without a log.
    """
    start = clock()
    watch = _Watch()
    asking = asyncio.create_task(
        _ask(
            _attempts(probe, log, connect),
            watch,
            deadline=start + timeout,
            clock=clock,
            stranger=stranger,
        )
    )
    awaited: set[asyncio.Future[Any]] = {asking} if ended is None else {asking, ended}
    try:
        # The asking ends by itself in time, and more gently than by being cancelled.
        await asyncio.wait(
            awaited, timeout=timeout + _OVERTIME, return_when=asyncio.FIRST_COMPLETED
        )
        has_ended = ended is not None and ended.done()
        answer = asking.result() if asking.done() else None
        if answer is not None and not has_ended:
            return Ready(seconds=clock() - start, attempts=watch.attempts, answer=answer)
        return NotReady(
            seconds=clock() - start,
            attempts=watch.attempts,
            missing=f"{_waiting_for(probe)}: {watch.seen_until(clock())}",
            ended=has_ended,
        )
    finally:
        asking.cancel()
        await asyncio.wait({asking})


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What the attempts have seen so far."""

    seen: str = ""
    attempts: int = 0
    asked_at: float | None = None  # of the attempt under way

    def seen_until(self, now: float) -> str:
        """Tell the last thing seen, a silence included."""
        silence = 0.0 if self.asked_at is None else now - self.asked_at
        if silence >= _SILENCE:
            return f"no answer within {duration(silence)}"
        return self.seen or "no answer yet"


def address_of(probe: Probe | None) -> tuple[str, int] | None:
    """Give the host and port that a probe asks; None for a log, and for no probe.

    >>> address_of(HttpProbe(url="https://localhost/health"))
    ('localhost', 443)
    """
    match probe:
        case TcpProbe(host=host, port=port):
            return host, port
        case HttpProbe(url=url):
            parts = urlsplit(url)
            port = parts.port or _STANDARD_PORTS.get(parts.scheme, 0)
            return (parts.hostname, port) if parts.hostname and port else None
        case LogProbe() | None:
            return None
        case _:
            assert_never(probe)


def is_this_machine(host: str) -> bool:
    """Tell whether a host is this machine by its name or address alone.

    >>> is_this_machine("localhost"), is_this_machine("0.0.0.0"), is_this_machine("db.example")
    (True, True, False)
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


class _NotYetError(Exception):
    """An attempt was made and the server is not ready; the text says what was seen."""


def _waiting_for(probe: Probe) -> str:
    match probe:
        case HttpProbe(url=url):
            return one_line(url)
        case TcpProbe(host=host, port=port):
            shown = f"[{host}]" if ":" in host else host
            return f"tcp://{one_line(shown)}:{port}"
        case LogProbe(pattern=pattern):
            return f"log:{one_line(pattern)}"
        case _:
            assert_never(probe)


async def _ask(
    attempts: contextlib.AbstractAsyncContextManager[_Attempt],
    watch: _Watch,
    *,
    deadline: float,
    clock: Callable[[], float],
    stranger: Callable[[], Awaitable[str]] | None,
) -> str | None:
    async with attempts as attempt:
        pause = _FIRST_PAUSE
        patience = _FIRST_PATIENCE
        while (left := deadline - clock()) > 0 or not watch.attempts:
            watch.attempts += 1
            watch.asked_at = clock()
            try:
                answer = await attempt(min(patience, max(left, _FIRST_PAUSE)))
                whose = await stranger() if stranger is not None else ""
                if not whose:
                    return answer
                watch.seen = f"another answers in its place: {whose}"
            except TimeoutError:
                if patience >= left and watch.seen and left < _SILENCE:
                    return None  # too short a look to say more than the last one
                watch.seen = f"no answer within {duration(min(patience, left))}"
                patience *= 2
            except _NotYetError as error:
                watch.seen = str(error)
            watch.asked_at = None
            await asyncio.sleep(min(pause, max(deadline - clock(), 0)))
            pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)
    return None


@contextlib.asynccontextmanager
async def _attempts(
    probe: Probe, log: Path | None, connect: Connect | None
) -> AsyncIterator[_Attempt]:
    """Give what makes one attempt: it returns the answer of a ready server or raises _NotYetError."""
    match probe:
        case HttpProbe(url=url):
            import httpx

            async with httpx.AsyncClient(
                transport=_transport(connect),
                trust_env=False,  # a proxy has no business between this machine and itself
                verify=False,  # noqa: S501 - nothing secret is sent, and local servers sign their own certificates
            ) as client:
                yield functools.partial(_ask_http, client, url)
        case TcpProbe(host=host, port=port):
            yield functools.partial(_ask_tcp, connect, host, port)
        case LogProbe(pattern=pattern):
            if log is None:
                raise ValueError("a log probe needs the file of the log")
            with contextlib.closing(_LogScan(log, re.compile(pattern))) as scan:
                yield scan.attempt
        case _:
            assert_never(probe)


def _transport(connect: Connect | None) -> "httpx.AsyncBaseTransport | None":
    if connect is None:
        return None
    from e2e_runner.http_inside import Transport

    return Transport(connect)


async def _ask_http(client: "httpx.AsyncClient", url: str, limit: float) -> str:
    import httpx

    try:
        # The body of a stream of events never ends: the status is answer enough. The limit is
        # httpx's own: cancelled in a TLS handshake, it would leave its socket open.
        async with client.stream("GET", url, timeout=limit) as response:
            status = f"{response.status_code} {one_line(response.reason_phrase)}".strip()
            if response.status_code < _FIRST_ERROR:
                return status
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except httpx.RemoteProtocolError as error:
        raise _NotYetError(f"no valid answer: {one_line(str(error))}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _NotYetError(_reason(error)) from error
    raise _NotYetError(f"last answer: {status}")


async def _ask_tcp(connect: Connect | None, host: str, port: int, limit: float) -> str:
    try:
        async with asyncio.timeout(limit):
            if connect is not None:
                (await connect(host, port)).close()
                return "connection accepted"
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        raise
    except OSError as error:
        raise _NotYetError(_reason(error)) from error
    writer.close()
    with contextlib.suppress(OSError):  # reset by a server that was not interested
        await writer.wait_closed()
    return "connection accepted"


def _reason(error: BaseException) -> str:
    """Say why a connection failed, as the system said it, however deeply it is wrapped."""
    root = error
    while cause := root.__cause__ or root.__context__:
        root = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if isinstance(root, ConnectionRefusedError):
        return "connection refused"
    if isinstance(root, ConnectionResetError):
        return "connection reset by the server"
    if isinstance(root, OSError) and root.strerror:
        return one_line(root.strerror)
    return one_line(str(error)) or type(error).__name__


class _LogScan:
    """Looks for a line in a growing log, reading what is new at each attempt."""

    def __init__(self, file: Path, pattern: re.Pattern[str]) -> None:
        self._file = file
        self._pattern = pattern
        self._stream: FileIO | None = None
        self._restart()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def attempt(self, limit: float) -> str:
        async with asyncio.timeout(limit):
            return await self._scan()

    async def _scan(self) -> str:
        while data := self._new():
            found = self._find(self._decoder.decode(data))
            if found is not None:
                return found
            await asyncio.sleep(0)  # a flood of output must not hold up the other examples
        raise _NotYetError(
            f"no line of the output matched; the last one: {self._shown()}"
            if self._last
            else "no line of the output matched: there is none"
        )

    def _restart(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""  # not finished yet
        self._is_cut = False  # whether `_line` lacks its beginning
        self._last = ""

    def _new(self) -> bytes:
        try:
            if self._stream is None:
                self._stream = FileIO(self._file, "rb")
            if self._stream.tell() > os.fstat(self._stream.fileno()).st_size:
                self._stream.seek(0)  # the log was emptied to keep it within its limit
                self._restart()
            return self._stream.read(_CHUNK)
        except FileNotFoundError:
            return b""

    def _find(self, text: str) -> str | None:
        *finished, rest = (self._line + text).split("\n")
        for line in finished:
            if (found := self._match(line)) is not None:
                return found
            self._is_cut = False
        found = self._match(rest)
        self._line = rest[-_LONGEST_LINE:]
        self._is_cut = self._is_cut or len(rest) > _LONGEST_LINE
        return found

    def _match(self, line: str) -> str | None:
        if line.strip():
            self._last = line
        # From the second character on, "^" no longer matches: it is not where the line begins.
        shown = strip_ansi(line.rstrip("\r"))
        found = self._pattern.search(shown, 1 if self._is_cut else 0)
        return shorten(one_line(shown), _SHOWN) if found else None

    def _shown(self) -> str:
        return shorten(one_line(strip_ansi(self._last[-_SHOWN:])), _SHOWN)
