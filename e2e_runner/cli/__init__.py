"""The command line: one thin module per command.

This module imports next to nothing, so that Ctrl-C finds `main` at work while the rest is imported.
"""

import contextlib
import os
import sys

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run ``e2e-run`` and exit; what a user can cause is told without a traceback."""
    try:
        from e2e_runner.cli.commands import call

        code = call()
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write("e2e-run: interrupted before anything was started\n")
    # At once: everything is closed by now, and taking the interpreter apart takes a while.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError, KeyboardInterrupt):
            continue  # closed from the start, or its reader has gone: there is nobody left to tell
    os._exit(code)
