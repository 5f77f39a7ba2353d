"""Runs a project's example scripts as its end-to-end tests.

This module imports nothing, so that ``e2e-run --version`` and the spawner process start fast.
"""

__version__ = "0.1.0"
