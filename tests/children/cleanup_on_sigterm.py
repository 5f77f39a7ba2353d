"""Hangs; on SIGTERM writes the file named by E2E_CHILD_MARKER and exits 0. Right verdict: timeout."""

import os
import signal
import sys

from _detach import wait_for_ever
from _ready import ready


def clean_up(_number, _frame):
    """Leave proof that there was time for this."""
    with open(os.environ["E2E_CHILD_MARKER"], "w") as marker:
        marker.write("cleaned up\n")
    print("cleaned up", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, clean_up)
print("hanging", flush=True)
ready()
wait_for_ever()
