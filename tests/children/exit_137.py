"""Exits with code 137, without any signal. Right verdict: failed, exit code 137, no signal."""

import sys

print("exiting with 137")
sys.exit(137)
