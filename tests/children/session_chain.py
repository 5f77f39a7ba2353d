"""Chains 30 new sessions, each ignoring SIGTERM. Right verdict: timeout; told to exit: leaked.

With the argument `exit` (or E2E_CHILD_EXIT=1) the script exits 0 once the last link lives; the links
stay in both cases.
"""

import os
import signal
import sys

from _detach import wait_for_ever
from _ready import ready

DEPTH = 30

leave = "exit" in sys.argv[1:] or os.environ.get("E2E_CHILD_EXIT") == "1"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
reader, writer = os.pipe()
depth = 0
while depth < DEPTH and os.fork() == 0:
    os.setsid()
    ready()
    depth += 1
if depth == DEPTH:
    os.write(writer, b"x")
if depth > 0:
    wait_for_ever()
os.read(reader, 1)
print(f"{DEPTH} sessions deep", flush=True)
if not leave:
    wait_for_ever()
