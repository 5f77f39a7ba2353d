"""Prints a line and exits 0. Right verdict: passed."""

print("all is well")
