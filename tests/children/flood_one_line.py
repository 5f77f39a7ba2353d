"""Writes E2E_CHILD_MB (50) megabytes in one line, exits 0. Right verdict: passed, log bounded."""

import os
import sys

megabytes = int(os.environ.get("E2E_CHILD_MB", "50"))
sys.stdout.write("start of the line ")
for _ in range(megabytes):
    sys.stdout.write("y" * 1_000_000)
sys.stdout.write(" end of the line\n")
