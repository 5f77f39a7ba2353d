"""Puts a pipe in the place of its own log and exits 1. Right verdict: failed, without waiting for the pipe."""

import os
import sys

log = os.readlink("/proc/self/fd/1")
os.unlink(log)
os.mkfifo(log)
sys.exit(1)
