"""Stops its parent with SIGSTOP, as if to hold up whoever watches it; exits 0. Right verdict: passed."""

import os
import signal

if os.getppid() > 1:
    os.kill(os.getppid(), signal.SIGSTOP)
print("stopped the parent")
