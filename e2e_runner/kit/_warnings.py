"""What the kit says to the person who runs the script, on standard error."""

import contextlib
import sys

from e2e_runner.text import one_line


def warn(message: str) -> None:
    """Write a warning of one line."""
    tell(f"e2e-run: {one_line(message)}")


def tell(text: str) -> None:
    """Write lines. That nobody can read them is no failure of the script."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
