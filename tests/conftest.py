"""What all tests share: property tests without deadlines, and one user at a time for port 8000."""

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ON_HOST
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


# They have the port for minutes: one worker runs them, from the start, while the others do the rest.
# Not by `xdist_group`: pytest-xdist 3.8 ignores groups under pytest 9.2 (its issue 1386).
ON_THE_PORT = ("test_docs_pages.py", "test_examples.py", "test_misbehaving.py", "test_readme.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in ON_THE_PORT)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByFileAndPort(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "on the port" if Path(file).name in ON_THE_PORT else file

    return ByFileAndPort(config, log)


@pytest.fixture(scope="session", autouse=True)
def on_host() -> Iterator[None]:
    """Have runs in this process, and those that inherit its environment, do what most tests are about.

    A test of networks or jobs sets or deletes the variables; so does one of what users get by default.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON_HOST.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def demo_port() -> Iterator[int]:
    """Hold the port of the demo service, so that a test of another worker or run does not take it."""
    folder = os.open(EXAMPLES, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", DEMO_PORT)) == 0:
                pytest.fail(f"port {DEMO_PORT} is taken before the test: stop what listens there")
        yield DEMO_PORT
    finally:
        os.close(folder)
