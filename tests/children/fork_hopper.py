"""Leaves a process that forks and lets its parent exit, for ever; exits 0. Right verdict: leaked."""

import os
import sys

from _ready import ready

HOPS_BEFORE_READY = 10

reader, writer = os.pipe()
sys.stdout.flush()
if os.fork() == 0:
    hops = 0
    while True:
        if os.fork():
            os._exit(0)
        hops += 1
        if hops == HOPS_BEFORE_READY:
            ready()
            os.write(writer, b"x")
os.read(reader, 1)
print("a process is hopping")
