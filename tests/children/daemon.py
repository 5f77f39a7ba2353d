"""Leaves a daemon (double fork, own session) and exits 0. Right verdict: leaked."""

from _detach import leave_behind

leave_behind(daemon=True)
print("left a daemon")
