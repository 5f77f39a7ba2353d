import asyncio
import contextlib
import itertools
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import free_port
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner import probes
from e2e_runner.model import HttpProbe, LogProbe, TcpProbe
from e2e_runner.probes import NotReady, Ready, wait_ready

_UNTIL_ANSWERED = 1.0  # seconds: all of them are waited for, and a busy machine answers within them
Answer = Callable[[int], bytes | None]  # number of the request -> what to answer; None: nothing


@contextlib.contextmanager
def _server(answer: Answer, port: int = 0, *, reset: bool = False) -> Iterator[int]:
    """Serve raw answers on a real socket and give its port."""
    numbers = itertools.count(1)
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        timeout = 10  # seconds: a mistake of a test must not hang the others

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while (line := self.rfile.readline()) and line != b"\r\n":
                    pass
                data = answer(next(numbers))
                if data is None:
                    over.wait()
                else:
                    self.wfile.write(data)
            if reset:
                linger = struct.pack("ii", 1, 0)  # on, 0 seconds: closing resets
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.request.close()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False

    with Server(("127.0.0.1", port), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server.server_address[1]
        finally:
            over.set()
            server.shutdown()
            serving.join()


def _status(line: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _http(answer: Answer, seconds: float) -> tuple[Ready | NotReady, str]:
    with _server(answer) as port:
        url = f"http://127.0.0.1:{port}/health"
        return asyncio.run(wait_ready(HttpProbe(url=url), timeout=seconds)), url


def _missing(result: Ready | NotReady) -> str:
    assert isinstance(result, NotReady)
    assert not result.ended
    return result.missing


# --- HTTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "302 Found", "399"])
def test_a_status_below_400_is_ready(status: str) -> None:
    result, _ = _http(lambda _: _status(status), 20)
    assert isinstance(result, Ready)
    assert (result.answer, result.attempts) == (status, 1)


def test_a_server_that_is_ready_at_the_third_request() -> None:
    result, _ = _http(lambda count: _status("503 Busy") if count < 3 else _status("200 OK"), 20)
    assert isinstance(result, Ready)
    assert result.attempts == 3


def test_the_last_status_is_told() -> None:
    result, url = _http(lambda _: _status("503 Service Unavailable"), _UNTIL_ANSWERED)
    assert _missing(result) == f"{url}: last answer: 503 Service Unavailable"


def test_nobody_listening_is_connection_refused() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    result = asyncio.run(wait_ready(HttpProbe(url=url), timeout=_UNTIL_ANSWERED))
    assert _missing(result) == f"{url}: connection refused"
    assert result.attempts > 1


def test_a_server_that_never_answers() -> None:
    result, url = _http(lambda _: None, 0.5)
    assert _missing(result).startswith(f"{url}: no answer within ")
    assert result.attempts == 1


def test_a_hung_request_is_asked_again() -> None:
    result, _ = _http(lambda count: None if count == 1 else _status("200 OK"), 30)
    assert isinstance(result, Ready)
    assert result.attempts == 2


def test_garbage_is_no_valid_answer() -> None:
    result, url = _http(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n", _UNTIL_ANSWERED)
    assert _missing(result).startswith(f"{url}: no valid answer: ")


def test_a_closed_connection_is_no_valid_answer() -> None:
    result, url = _http(lambda _: b"", _UNTIL_ANSWERED)
    assert _missing(result) == (
        f"{url}: no valid answer: Server disconnected without sending a response."
    )


def test_a_reset_connection_is_told() -> None:
    with _server(lambda _: b"", reset=True) as port:
        url = f"http://127.0.0.1:{port}/"
        result = asyncio.run(wait_ready(HttpProbe(url=url), timeout=_UNTIL_ANSWERED))
    assert _missing(result) == f"{url}: connection reset by the server"


def test_a_body_that_never_ends_is_no_obstacle() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
    result, _ = _http(lambda _: head, 20)
    assert isinstance(result, Ready)


def test_a_server_that_starts_while_it_is_waited_for() -> None:
    async def check() -> Ready | NotReady:
        port = free_port()
        probe = HttpProbe(url=f"http://127.0.0.1:{port}/")
        refused = await wait_ready(probe, timeout=0.05)
        assert isinstance(refused, NotReady)
        waiting = asyncio.create_task(wait_ready(probe, timeout=20))
        await asyncio.sleep(0)
        with _server(lambda _: _status("200 OK"), port):
            return await waiting

    assert isinstance(asyncio.run(check()), Ready)


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    result, _ = _http(lambda _: _status("200 OK"), 20)
    assert isinstance(result, Ready)


def test_a_name_that_does_not_resolve() -> None:
    result = asyncio.run(wait_ready(HttpProbe(url="http://nowhere.invalid/"), timeout=0.5))
    assert _missing(result).startswith("http://nowhere.invalid/: ")


def test_https_to_a_server_without_tls() -> None:
    with _server(lambda _: _status("200 OK")) as port:
        url = f"https://127.0.0.1:{port}/"
        result = asyncio.run(wait_ready(HttpProbe(url=url), timeout=_UNTIL_ANSWERED))
    assert _missing(result).startswith(f"{url}: ")


# --- TCP -----------------------------------------------------------------------------------------


def test_an_accepted_connection_is_ready() -> None:
    with _server(lambda _: None) as port:
        result = asyncio.run(wait_ready(TcpProbe(host="127.0.0.1", port=port), timeout=20))
    assert isinstance(result, Ready)
    assert (result.answer, result.attempts) == ("connection accepted", 1)


def test_a_refused_connection_is_not_ready() -> None:
    port = free_port()
    result = asyncio.run(wait_ready(TcpProbe(host="127.0.0.1", port=port), timeout=0.2))
    assert _missing(result) == f"tcp://127.0.0.1:{port}: connection refused"


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    port = free_port()
    result = asyncio.run(wait_ready(TcpProbe(host="::1", port=port), timeout=0.1))
    assert _missing(result).startswith(f"tcp://[::1]:{port}: ")


# --- the log -------------------------------------------------------------------------------------


def _scan(log: Path, pattern: str, timeout: float = 0.1) -> Ready | NotReady:
    return asyncio.run(wait_ready(LogProbe(pattern=pattern), timeout=timeout, log=log))


@pytest.mark.parametrize(
    ("written", "pattern", "answer"),
    [
        (b"starting\nlistening on 8000\n", r"listening on \d+", "listening on 8000"),
        (b"starting\nlistening on 8000", r"^listening", "listening on 8000"),
        (b"a\r\nready\r\n", "^ready$", "ready"),
        (b"\x1b[32mUvicorn\x1b[0m running\n", "^Uvicorn running$", "Uvicorn running"),
        (b"\xff\xfe ready \x80\n", "ready", "\ufffd\ufffd ready \ufffd"),
        ("déjà prêt\n".encode(), "prêt", "déjà prêt"),
        (b"x\n\ny\n", "^$", ""),
    ],
)
def test_a_line_of_the_log_is_found(
    written: bytes, pattern: str, answer: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(written)
    result = _scan(log, pattern, timeout=20)
    assert isinstance(result, Ready)
    assert (result.answer, result.attempts) == (answer, 1)


def test_a_log_that_does_not_match_tells_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\n\x1b[31mno database\x1b[0m\n\n")
    assert _missing(_scan(log, "ready")) == (
        "log:ready: no line of the output matched; the last one: no database"
    )


def test_a_log_that_is_missing_or_empty(tmp_path: Path) -> None:
    expected = "log:ready: no line of the output matched: there is none"
    assert _missing(_scan(tmp_path / "none", "ready")) == expected
    (tmp_path / "log").touch()
    assert _missing(_scan(tmp_path / "log", "ready")) == expected


def test_a_log_probe_needs_a_log() -> None:
    with pytest.raises(ValueError, match="needs the file of the log"):
        asyncio.run(wait_ready(LogProbe(pattern="x"), timeout=20))


def _new_scan(log: Path, pattern: str) -> probes._LogScan:
    return probes._LogScan(log, re.compile(pattern))


async def _attempt(scan: probes._LogScan) -> str | None:
    try:
        return await scan.attempt(10)
    except probes._NotYetError:
        return None


def test_a_line_written_in_pieces_is_found_and_old_lines_are_read_once(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def check() -> None:
        with contextlib.closing(_new_scan(log, "^ready é$")) as scan:
            assert await _attempt(scan) is None
            with log.open("wb", buffering=0) as stream:
                for piece in (b"starting\nrea", b"dy \xc3"):
                    stream.write(piece)
                    assert await _attempt(scan) is None
                stream.write(b"\xa9")
                assert await _attempt(scan) == "ready é"

    asyncio.run(check())


def test_a_log_that_was_emptied_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def check() -> None:
        with contextlib.closing(_new_scan(log, "^ready")) as scan, log.open("ab") as stream:
            stream.write(b"a long line without an end")
            stream.flush()
            assert await _attempt(scan) is None
            stream.truncate(0)
            stream.write(b"ready\n")
            stream.flush()
            assert await _attempt(scan) == "ready"

    asyncio.run(check())


def test_a_line_without_end_is_held_in_bounds_and_has_one_beginning(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3_000_000 + b"needle" + b"y" * 50_000)

    async def check() -> None:
        with contextlib.closing(_new_scan(log, "needle")) as scan:
            found = await _attempt(scan)
            assert found is not None
            assert len(found) == 100
            assert len(scan._line) <= 16 * 1024
        with contextlib.closing(_new_scan(log, "^y")) as scan:
            assert await _attempt(scan) is None
            with log.open("ab") as stream:
                stream.write(b"\ny")
            assert await _attempt(scan) == "y"

    asyncio.run(check())


@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\x1b")), max_size=8),
    cuts=st.lists(st.integers(1, 20), min_size=1),
)
def test_any_pieces_find_the_line_that_the_whole_holds(lines: list[str], cuts: list[int]) -> None:
    data = "".join(f"{line}\n" for line in [*lines, "==ready=="]).encode()
    scan = _new_scan(Path("unused"), "^==ready==$")
    found = None
    at = 0
    for number in range(len(data)):
        size = cuts[number % len(cuts)]
        piece = data[at : at + size]
        at += size
        found = found or scan._find(scan._decoder.decode(piece))
    assert found == "==ready=="


# --- the end of the wait -------------------------------------------------------------------------


def test_the_end_of_the_process_ends_the_wait() -> None:
    async def check() -> tuple[Ready | NotReady, bool]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        probe = TcpProbe(host="127.0.0.1", port=free_port())
        waiting = asyncio.create_task(wait_ready(probe, timeout=60, ended=ended))
        await asyncio.sleep(0)
        ended.set_result(None)
        return await waiting, ended.cancelled()

    result, was_cancelled = asyncio.run(check())
    assert isinstance(result, NotReady)
    assert result.ended
    assert not was_cancelled


def test_an_unfinished_end_is_not_cancelled() -> None:
    async def check() -> bool:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        probe = TcpProbe(host="127.0.0.1", port=free_port())
        await wait_ready(probe, timeout=0.05, ended=ended)
        return ended.done()

    assert asyncio.run(check()) is False


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def check(port: int, asked: threading.Event) -> int:
        probe = HttpProbe(url=f"http://127.0.0.1:{port}/")
        waiting = asyncio.create_task(wait_ready(probe, timeout=60))
        await asyncio.to_thread(asked.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return len(asyncio.all_tasks())

    asked = threading.Event()

    def hang(_: int) -> None:
        asked.set()

    with _server(hang) as port:
        assert asyncio.run(check(port, asked)) == 1


def test_what_is_missing_is_said_in_one_sentence() -> None:
    result = NotReady(
        seconds=5.0, attempts=23, missing="http://127.0.0.1:8000/: connection refused", ended=False
    )
    assert str(result) == (
        "not ready after 5.00s (23 attempts): http://127.0.0.1:8000/: connection refused"
    )
    assert str(replace(result, ended=True, attempts=1)) == (
        "its process ended after 5.00s (1 attempt): http://127.0.0.1:8000/: connection refused"
    )


def test_httpx_is_imported_only_where_http_is_asked() -> None:
    code = "import sys, e2e_runner.probes; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
