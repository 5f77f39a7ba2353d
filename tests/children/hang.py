"""Hangs for ever, and dies of SIGTERM. Right verdict: timeout."""

from _detach import wait_for_ever
from _ready import ready

print("hanging", flush=True)
ready()
wait_for_ever()
