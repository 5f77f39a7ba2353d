"""Hangs; exits 0 on SIGTERM. Right verdict: timeout, not passed."""

import signal
import sys

from _detach import wait_for_ever
from _ready import ready

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("hanging", flush=True)
ready()
wait_for_ever()
