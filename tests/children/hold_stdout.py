"""Exits 0 while a background child holds its standard output. Right verdict: leaked, at once."""

from _detach import leave_behind

print("leaving a child with my output", flush=True)
leave_behind()
