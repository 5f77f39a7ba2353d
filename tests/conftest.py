"""What all tests share: property tests without deadlines, and one user at a time for port 8000."""

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Under nohup it is ignored, and so it would be by every run that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO_PORT = 8000

# The machine's load decides how long a case takes, so time proves nothing.
settings.register_profile("default", deadline=None)
# In CI a run that fails must fail again; the search for new cases goes on on developers' machines.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def demo_port() -> Iterator[int]:
    """Hold the port of the demo service, so that tests of other workers do not take it."""
    # A lock and no `xdist_group`: pytest-xdist 3.8 ignores groups under pytest 9.2 (its issue 1386).
    folder = os.open(EXAMPLES, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", DEMO_PORT)) == 0:
                pytest.fail(f"port {DEMO_PORT} is taken before the test: stop what listens there")
        yield DEMO_PORT
    finally:
        os.close(folder)
