"""Aborts. Right verdict: failed, cause signal, SIGABRT."""

import os

print("aborting", flush=True)
os.abort()
