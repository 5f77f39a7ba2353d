"""Sends SIGTERM to its own process group, ignoring it itself; exits 0. Right verdict: passed."""

import os
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(0, signal.SIGTERM)
print("my group was terminated")
