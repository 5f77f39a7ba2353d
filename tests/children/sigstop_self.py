"""Stops itself with SIGSTOP, so that SIGTERM stays pending. Right verdict: timeout."""

import os
import signal

from _detach import wait_for_ever
from _ready import ready

print("stopping myself", flush=True)
ready()
os.kill(os.getpid(), signal.SIGSTOP)
print("continued", flush=True)
wait_for_ever()
