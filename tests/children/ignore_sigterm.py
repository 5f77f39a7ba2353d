"""Ignores SIGTERM and hangs. Right verdict: timeout, after SIGKILL."""

import signal

from _detach import wait_for_ever
from _ready import ready

signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ignoring SIGTERM", flush=True)
ready()
wait_for_ever()
