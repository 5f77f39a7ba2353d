"""Warnings of the kit to the person who runs the script."""

import contextlib
import sys

from e2e_runner.text import one_line


def warn(message: str) -> None:
    """Write a line to stderr, wherever that leads."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
        sys.stderr.write(f"e2e-run: {one_line(message)}\n")
        sys.stderr.flush()
