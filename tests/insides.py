"""A network namespace for tests, with a process in it that makes sockets there and gives them out."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import pytest
from harness import IS_ROOT, NOBODY, ordinary_python

# What the process does; each request is one line, and is answered with "ok" and a socket.
_INSIDE = """
import ctypes, fcntl, os, socket, struct, sys

NEWUSER, NEWNET = 0x10000000, 0x40000000
channel = socket.socket(fileno=int(sys.argv[1]))
flags = NEWNET if os.geteuid() == 0 else NEWUSER | NEWNET
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(flags):
    channel.send(b"unshare: " + os.strerror(ctypes.get_errno()).encode())
    sys.exit()
with socket.socket() as any_socket:  # raise the loopback interface
    up_and_running = struct.pack("16sH22x", b"lo", 0x1 | 0x40)
    fcntl.ioctl(any_socket, 0x8914, up_and_running)
channel.send(b"ok")
kept = []
while request := channel.recv(1000).decode():
    what, _, argument = request.partition(" ")
    if what == "listen":
        host, _, port = argument.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, int(port)), family=family, backlog=1000)
        kept.append(made)  # a listener of this process, too
    elif what == "diagnose":
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4)
    else:
        made = socket.socket()
    socket.send_fds(channel, [b"ok"], [made.fileno()])
    if made not in kept:
        made.close()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A process in a network namespace of its own, whose loopback is up."""

    pid: int
    _channel: socket.socket

    def listen(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Give a socket that listens inside; the process keeps it as well."""
        return self._made(f"listen {host}:{port}")

    def diagnosis(self) -> socket.socket:
        """Give a socket of NETLINK_SOCK_DIAG."""
        return self._made("diagnose")

    def unconnected(self) -> socket.socket:
        """Give a TCP socket for IPv4."""
        return self._made("socket")

    def _made(self, request: str) -> socket.socket:
        self._channel.send(request.encode())
        answer, descriptors, _, _ = socket.recv_fds(self._channel, 1000, 1)
        assert answer == b"ok"
        return socket.socket(fileno=descriptors[0])


@contextlib.contextmanager
def inside(user: int | None = None) -> Iterator[Inside]:
    """Start a process in a namespace, as `user` or as this one; skip where that is not permitted."""
    python = sys.executable if user is None else ordinary_python()
    if python is None:
        _skip("no interpreter here can be run by an ordinary user")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [python, "-c", _INSIDE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd="/",
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        with process:
            try:
                answer = ours.recv(1000).decode()
                if answer != "ok":
                    _skip(f"no network namespaces here: {answer}")
                yield Inside(pid=process.pid, _channel=ours)
            finally:
                ours.close()  # which ends it


def users() -> list[int | None]:
    """Give the users to try: this one, and an ordinary one where this is root."""
    return [None, NOBODY] if IS_ROOT else [None]


def _skip(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true" and IS_ROOT:
        pytest.fail(reason)
    pytest.skip(reason)
