"""Sends SIGTERM to its parent, if it may; exits 0. Right verdict: passed, and the run goes on."""

import os
import signal

parent = os.getppid()
try:
    # 0 is a parent outside this PID namespace; killing "0" would mean the own group.
    if parent > 0:
        os.kill(parent, signal.SIGTERM)
except PermissionError:
    print("not permitted")
print("still here")
