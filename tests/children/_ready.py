"""Tells a waiting test that a child has got where it wants to be. Not an example."""

import os


def ready(pid=None):
    """Append this process's id (or `pid`) as a line to the file named by E2E_CHILD_READY, if any."""
    path = os.environ.get("E2E_CHILD_READY")
    if path:
        # One O_APPEND write, so that lines of many children do not mix.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(fd, f"{pid or os.getpid()}\n".encode())
        finally:
            os.close(fd)
