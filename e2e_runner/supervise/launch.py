"""Launching the spawner: light, so that it can be the first thing a run does.

The spawner takes as long to start as the runner takes to read its configuration, so they do it side
by side. Nothing is set up before `client.Supervisor.open` asks for it.
"""

import contextlib
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from e2e_runner.errors import SetupError

_PAUSE = 50  # milliseconds
_PATIENCE = 60.0  # seconds; more than the spawner itself gives its keepers to finish


class Spawner:
    """A spawner process that waits to be told what to set up, until `close`."""

    def __init__(self) -> None:
        """Start it; raises SetupError."""
        self.sock, theirs = socket.socketpair()
        # -I -S: neither the caller's PYTHON* variables nor site-packages, for a third of the start-up.
        # What it imports is found by these two folders: this package, and (one tier only) psutil.
        code = (
            f"import sys; sys.path[:] = [{_folder_of('e2e_runner')!r}, *sys.path, {_folder_of('psutil')!r}]; "
            f"from e2e_runner.supervise.spawner import main; main({theirs.fileno()})"
        )
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",  # it may outlive the folder that it was started from
                    start_new_session=True,  # Ctrl-C is the runner's to handle
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            self.sock.close()
            raise SetupError(
                f"The process that starts the scripts cannot be started: {error.strerror}.",
                facts=(f"interpreter: {sys.executable}",),
                remedy="see that the system has processes and memory to spare.",
            ) from error

    def close(self) -> None:
        """Hang up, and wait for its end: bounded, and short when all is well."""
        self.sock.close()
        deadline = time.monotonic() + _PATIENCE
        with contextlib.ExitStack() as stack:
            ended = select.poll()
            # Without a pidfd (macOS, Linux before 5.3) the end of a run costs the pause below.
            with contextlib.suppress(AttributeError, OSError):
                pidfd = os.pidfd_open(self.process.pid)
                stack.callback(os.close, pidfd)
                ended.register(pidfd, select.POLLIN)
            while self.process.poll() is None:
                self.wake()
                if time.monotonic() > deadline:
                    self.process.kill()
                ended.poll(_PAUSE)

    def wake(self) -> None:
        """Continue it: a script whose keeper has died may have stopped "its parent"."""
        self.process.send_signal(signal.SIGCONT)  # which knows whether it has been reaped


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SetupError(f"The package {package} is not installed.", remedy="reinstall e2e-runner.")
    return str(Path(spec.origin).parent.parent)
