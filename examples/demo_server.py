"""Starts the demo service for an example, and stops it whatever happens."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import httpx

HOST = "127.0.0.1"
PORT = 8000
BASE_URL = f"http://{HOST}:{PORT}"
USERNAME = "trader"
PASSWORD = "buy-low-sell-high"

_READY_SECONDS = 10.0
_POLL_SECONDS = 0.02
_STOP_SECONDS = 3.0


class ServerError(Exception):
    """The service did not start; says why, with its log."""


@contextmanager
def demo_server() -> Iterator[str]:
    """Run the service on port 8000 while the block lasts; give its base URL once it is ready.

    `ServerError` is raised when the port is taken, or when the service ends or is not ready within
    10 seconds. SIGTERM ends the block like Ctrl-C does, so that the service never outlives it.
    """
    _require_free_port()
    instance = uuid.uuid4().hex
    previous = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "demo_api.main:app", "--port", str(PORT)],
                cwd=Path(__file__).parent,
                env={**os.environ, "DEMO_INSTANCE": instance},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                _wait_until_ready(server, instance, log)
                print(f"The demo service is ready at {BASE_URL}.")
                yield BASE_URL
            finally:
                _stop(server)
    finally:
        signal.signal(signal.SIGTERM, previous)


def check(condition: object, message: str) -> None:
    """Fail with `message` unless the condition is true. Unlike `assert`, ``python -O`` keeps it."""
    if not condition:
        raise AssertionError(message)


def check_status(response: httpx.Response, status: int) -> None:
    """Fail with the request and the whole answer when its status is another one."""
    check(
        response.status_code == status,
        f"{response.request.method} {response.request.url}: expected status {status}, "
        f"got {response.status_code} with body {response.text!r}",
    )


def _require_free_port() -> None:
    # Said at once and in one line, not after the server has loaded and failed to bind.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, PORT))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ServerError(
                f"{HOST}:{PORT}: address already in use. Stop what listens there, then try again."
            ) from None


def _wait_until_ready(server: subprocess.Popen[bytes], instance: str, log: IO[str]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    seen = "nothing yet"
    with httpx.Client(base_url=BASE_URL, timeout=1.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            code = server.poll()
            if code is not None:
                raise ServerError(f"The demo service exited with code {code}.\n{_read(log)}")
            try:
                response = client.get("/health")
            except httpx.TransportError as error:
                seen = str(error)
            else:
                # A stranger that took the port in the meantime must not pass for our own server.
                if response.status_code == httpx.codes.OK and instance in response.text:
                    return
                seen = f"status {response.status_code} with body {response.text!r}"
            time.sleep(_POLL_SECONDS)
    raise ServerError(
        f"The demo service was not ready after {_READY_SECONDS:g} s: "
        f"GET {BASE_URL}/health gave {seen}.\n{_read(log)}"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _read(log: IO[str]) -> str:
    log.seek(0)
    return f"Its log:\n{log.read().rstrip() or '(empty)'}"


def _exit_on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
