"""Writes E2E_CHILD_MB (200) megabytes in numbered lines, exits 0. Right verdict: passed, log bounded."""

import os
import sys

megabytes = int(os.environ.get("E2E_CHILD_MB", "200"))
LINE = 100
print("first line of the flood")
number = 0
for _ in range(megabytes):
    block = []
    for _ in range(1_000_000 // LINE):
        number += 1
        block.append(f"{number:012} ".ljust(LINE - 1, "x"))
    sys.stdout.write("\n".join(block) + "\n")
print("last line of the flood")
