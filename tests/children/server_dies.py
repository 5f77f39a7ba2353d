"""Exits 3 with a message before it listens. Right verdict, declared or as a companion: not ready, exit 3."""

import sys

print("cannot open the database of the server", file=sys.stderr)
sys.exit(3)
