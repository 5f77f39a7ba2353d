"""Hangs; its cleanup on SIGTERM writes E2E_CHILD_MARKER and never ends. Right verdict: timeout, after SIGKILL."""

import os
import signal

from _detach import wait_for_ever
from _ready import ready


def clean_up(_number, _frame):
    """Begin, and never end."""
    with open(os.environ["E2E_CHILD_MARKER"], "w") as marker:
        marker.write("cleaning up\n")
    print("cleaning up", flush=True)
    wait_for_ever()


signal.signal(signal.SIGTERM, clean_up)
print("hanging", flush=True)
ready()
wait_for_ever()
