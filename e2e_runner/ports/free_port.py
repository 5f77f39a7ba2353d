"""A TCP port for a server that is about to be started."""

import contextlib
import random
import socket
import sys
from collections.abc import Collection
from pathlib import Path

_LOWEST = 20000
_END = 32768  # where Linux's ephemeral ports begin, unless it is told otherwise
_FEWEST = 1000  # ports to choose from
_MOST_TRIED = 500


def free_port(avoid: Collection[int]) -> int | None:
    """Find a port of 127.0.0.1 that is free now, below those that the system gives to clients.

    None when many were tried in vain. Somebody else may take it before the server does.
    """
    end = min(_END, _first_ephemeral())
    ports = range(_LOWEST, end if end >= _LOWEST + _FEWEST else _END)
    for port in random.sample(ports, k=min(len(ports), _MOST_TRIED)):
        if port not in avoid:
            with socket.socket() as sock, contextlib.suppress(OSError):
                # As the server itself does it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
                return port
    return None


def _first_ephemeral() -> int:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
            return int(text.split()[0])
    return _END
