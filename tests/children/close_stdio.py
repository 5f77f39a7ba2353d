"""Closes standard input, output and error, then exits 0. Right verdict: passed."""

import os

print("closing", flush=True)
for fd in (0, 1, 2):
    os.close(fd)
