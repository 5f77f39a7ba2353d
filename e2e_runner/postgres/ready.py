"""Whether a server answers: the first packet of PostgreSQL's protocol over a Unix socket, and no driver."""

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

from e2e_runner.segments import PID_FILE

_PROTOCOL = 196608  # 3.0
_STARTING_UP = b"57P03"  # SQLSTATE cannot_connect_now
_READY_FOR_QUERY = b"Z"
_ERROR = b"E"
_TERMINATE = b"X\0\0\0\4"
_HEADER = 5  # bytes: the type of a message, and its length
_POLL = 0.002  # seconds
_STATUS_LINE = 7  # of the pid file, counted from 0


async def wait_ready(
    data: Path, socket_file: Path, *, user: str, ended: "asyncio.Future[Any]", patience: float
) -> bool:
    """Wait until a server answers on its socket; False once `ended` is done or `patience` is over.

    `data` is that of the server; `patience` is in seconds. The server lets `user` in without a
    password.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while not ended.done():
                with contextlib.suppress(OSError):  # it does not listen yet, or no more
                    if _says_ready(data) and await _answers(socket_file, user):
                        return True
                await asyncio.sleep(_POLL)
    return False


def _says_ready(data: Path) -> bool:
    """Read what the server says of itself; asked before that, it would log a fatal error. Raises OSError."""
    lines = (data / PID_FILE).read_bytes().splitlines()
    return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == b"ready"


async def _answers(socket_file: Path, user: str) -> bool:
    """Open a session and close it; False while the server starts up. Raises OSError."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(socket_file))
        await loop.sock_sendall(sock, _startup_packet(user))
        data = b""
        while True:
            received = await loop.sock_recv(sock, 65536)
            if not received:
                return False
            data += received
            verdict, data = _judge(data)
            if verdict is not None:
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(sock, _TERMINATE)
                return verdict


def _startup_packet(user: str) -> bytes:
    words = ("user", user, "database", "postgres", "")  # pairs, and the empty word that ends them
    body = b"".join(word.encode() + b"\0" for word in words)
    return struct.pack("!II", 8 + len(body), _PROTOCOL) + body


def _judge(data: bytes) -> tuple[bool | None, bytes]:
    """Read whole messages; gives True for ready, False for not yet, None for more to come, and the rest."""
    while len(data) >= _HEADER:
        kind, (length,) = data[:1], struct.unpack_from("!I", data, 1)
        if len(data) < 1 + length:
            break
        body, data = data[_HEADER : 1 + length], data[1 + length :]
        if kind == _READY_FOR_QUERY:
            return True, data
        if kind == _ERROR:
            # Any other refusal comes from a server that is up.
            return b"C" + _STARTING_UP not in body.split(b"\0"), data
    return None, data
