"""Messages between the runner, the spawner and the keepers, over a Unix stream socket.

A message is a tuple of plain values, marshalled behind a length of four bytes; both ends run the same
interpreter. File descriptors may ride along.
"""

import array
import marshal
import socket
import struct
from collections.abc import Iterator
from typing import Any

# What marshal takes: None, bool, int, float, str, bytes, and lists, tuples and dicts of these.
Message = tuple[Any, ...]

_LENGTH = struct.Struct("!I")
_MAX_FDS = 8
_CHUNK = 65536
# Linux can mark received descriptors close-on-exec atomically; elsewhere it is done right after.
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# A peer that is gone must be an error here, not a SIGPIPE.
_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message; raises OSError (EPIPE, ECONNRESET) when the peer is gone."""
    body = marshal.dumps(message)
    data = _LENGTH.pack(len(body)) + body
    if fds:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        data = data[sock.sendmsg([data], rights, _NOSIGNAL) :]
    if data:
        sock.sendall(data, _NOSIGNAL)


class Reader:
    """Cuts a byte stream into messages; keeps the descriptors that came with it in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.fds: list[int] = []
        self.ended = False

    def fill(self, sock: socket.socket) -> None:
        """Read once; sets `ended` when the peer is gone. Raises BlockingIOError when there is nothing."""
        try:
            data, ancillary, _, _ = sock.recvmsg(
                _CHUNK, socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize), _CLOEXEC
            )
        except ConnectionResetError:
            self.ended = True
            return
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self.fds.extend(received)
        if not data:
            self.ended = True
        self._buffer += data

    def messages(self) -> Iterator[Message]:
        """Take the complete messages that have arrived."""
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            message: Message = marshal.loads(body)  # noqa: S302 - the peer is our own process
            yield message

    def take_fds(self, count: int) -> tuple[int, ...]:
        """Take the `count` oldest descriptors."""
        taken = tuple(self.fds[:count])
        del self.fds[:count]
        return taken
