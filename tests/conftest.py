"""What all tests share: property tests without deadlines, and one user at a time for port 8000."""

import compileall
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ON_HOST, REPOSITORY
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


def pytest_configure(config: pytest.Config) -> None:
    # Thousands of processes import the package, and those of other users could not keep what they
    # compile: done once, that makes each a third cheaper, as it is where the package is installed.
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(REPOSITORY / "e2e_runner", quiet=1)


# They have the port for minutes: one worker runs them, from the start, while the others do the rest.
# Not by `xdist_group`: pytest-xdist 3.8 ignores groups under pytest 9.2 (its issue 1386).
ON_THE_PORT = ("test_docs_pages.py", "test_examples.py", "test_misbehaving.py", "test_readme.py")


# Files take seconds as a rule; these take a minute or so, and would hold up the end if they came last.
LONG = (
    *("test_kit_databases.py", "test_sweep.py", "test_children.py", "test_postgres_shared.py"),
    *("test_attempt_network.py", "test_kit_servers.py", "test_embedded.py", "test_networks.py"),
    *("test_postgres_connection.py", "test_postgres_drop.py", "test_cli_postgres.py"),
    *("test_run_postgres.py", "test_run_bad_input.py", "test_cli_sweep.py", "test_schedule.py"),
    *("test_run_interruption.py", "test_history_damage.py", "test_timings.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {name: place for place, name in enumerate((*ON_THE_PORT, *LONG))}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Have half as many more workers than processors: a good part of their time they wait."""
    return (os.cpu_count() or 1) * 3 // 2


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
