"""Starts processes that outlive whoever started them. Not an example."""

import os
import signal
import sys

from _ready import ready


def wait_for_ever():
    """Block until a signal kills."""
    while True:
        signal.pause()


def leave_behind(work=wait_for_ever, *, session=False, daemon=False):
    """Run `work()` in a process that lives on; return once it is ready. Its pid goes to E2E_CHILD_READY.

    `session` gives it a session of its own; `daemon` also makes it an orphan without standard streams.
    A program that `work` replaces itself with counts as ready when it runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()  # closed by exec
    first = os.fork()
    if first == 0:
        try:
            os.close(reader)
            if session or daemon:
                os.setsid()
            if daemon:
                if os.fork():
                    os._exit(0)
                _silence()
            os.write(writer, str(os.getpid()).encode())
            if work is wait_for_ever:
                os.close(writer)
            work()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        pid = int(pipe.read())  # ends when the other end is closed
    if daemon:
        os.waitpid(first, 0)
    ready(pid)


def _silence():
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
