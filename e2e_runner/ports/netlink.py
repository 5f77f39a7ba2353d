"""The TCP sockets that wait on a port, by the kernel's own query (NETLINK_SOCK_DIAG), as `ss` asks it.

``/proc/net/tcp`` walks the table of all connections, whose size follows the machine's memory: 4 ms
and more where this takes 50 microseconds.
"""

import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SIOCGSKNS = 0x894C
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_TCP_LISTEN = 10
_TCP_BOUND_INACTIVE = 13

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states; any socket id
# family, state; source port and address in network order; uid, inode
_ANSWER = struct.Struct("=BBxx2s2x16s40xII")
_ERROR = struct.Struct("=i")

_numbers = itertools.count(1)  # of queries


def listening_rows(channel: socket.socket | None = None) -> Iterator[tuple[int, bytes, int, int]]:
    """Give port, packed address (4 or 16 bytes), uid and inode of each listening TCP socket.

    They are those of the network namespace in which `channel`, a netlink socket of this protocol,
    was made; without one, of the calling thread's. Raises OSError where the kernel offers no such
    query.
    """
    return _rows(_TCP_LISTEN, channel)


def bound_rows() -> Iterator[tuple[int, bytes, int, int]]:
    """Give the same of each TCP socket that is bound and neither listens nor is connected.

    Linux tells since 6.8; an older kernel gives none.
    """
    return _rows(_TCP_BOUND_INACTIVE, None)


def namespace_of(channel: socket.socket) -> int | None:
    """Give the inode of the network namespace that a socket is in; None where that is not told.

    The number is that of no other namespace while the socket is open.
    """
    try:
        namespace = fcntl.ioctl(channel, _SIOCGSKNS)
    except OSError:
        return None
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def _rows(state: int, channel: socket.socket | None) -> Iterator[tuple[int, bytes, int, int]]:
    if channel is not None:
        yield from _asked(channel, state)
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as own:
        yield from _asked(own, state)


def _asked(channel: socket.socket, state: int) -> Iterator[tuple[int, bytes, int, int]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << state)
        length = _HEADER.size + len(request)
        number = next(_numbers) & 0xFFFFFFFF
        header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, number, 0)
        channel.send(header + request)
        yield from _answers(channel, number)


def _answers(channel: socket.socket, number: int) -> Iterator[tuple[int, bytes, int, int]]:
    while True:
        datagram = channel.recv(1 << 16)
        at = 0
        while at < len(datagram):
            length, kind, _flags, answered, _sender = _HEADER.unpack_from(datagram, at)
            body = at + _HEADER.size
            at += (length + 3) & ~3
            if answered != number:  # of a query whose answers nobody has read to the end
                continue
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (number,) = _ERROR.unpack_from(datagram, body)
                raise OSError(-number, os.strerror(-number))
            family, _state, port, address, uid, inode = _ANSWER.unpack_from(datagram, body)
            yield (
                int.from_bytes(port, "big"),
                address[:4] if family == socket.AF_INET else address,
                uid,
                inode,
            )
