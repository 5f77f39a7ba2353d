"""Starts E2E_CHILD_COUNT (200) children that hang, and hangs. Right verdict: timeout, nothing left."""

import os

from _detach import wait_for_ever
from _ready import ready

count = int(os.environ.get("E2E_CHILD_COUNT", "200"))
for _ in range(count):
    if os.fork() == 0:
        ready()
        wait_for_ever()
print(f"started {count} children", flush=True)
ready()
wait_for_ever()
