"""Exits 0; a child in a session of its own holds a pipe and the output. Right verdict: leaked, at once."""

import os

from _detach import leave_behind

reader, writer = os.pipe()
leave_behind(session=True)
print("the child is in a session of its own", flush=True)
