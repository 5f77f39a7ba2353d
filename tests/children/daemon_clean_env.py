"""Leaves a daemon with no environment, in /, with closed descriptors; exits 0. Right verdict: leaked."""

import os
import sys

from _detach import leave_behind

CODE = "import signal\nwhile True: signal.pause()"


def vanish():
    """Become a program that shares nothing with this script."""
    os.chdir("/")
    for fd in (0, 1, 2):
        os.close(fd)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", CODE], {})


leave_behind(vanish, daemon=True)
print("left a daemon without an environment")
