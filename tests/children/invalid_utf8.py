"""Fails with bytes in its output that are not UTF-8. Right verdict: failed, readable report."""

import os
import sys

os.write(1, b"caf\xe9 \xff\xfe\x80 \xc3(\n")
os.write(2, b"last line: \xf0\x9f\x92\n")
sys.exit(1)
