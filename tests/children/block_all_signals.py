"""Blocks every signal that can be blocked and hangs. Right verdict: timeout, after SIGKILL."""

import signal

from _detach import wait_for_ever
from _ready import ready

signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("blocking every signal", flush=True)
ready()
wait_for_ever()
