"""The example suite as users run it: under e2e-run and by hand, on both kinds of server, also killed.

It is run in a copy of what a checkout has. Nothing here counts on which examples there are.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import ON_HOST, Running, wait_gone, wait_until
from servers import Server, debian_binaries, missing, running_server, wheel_binaries
from suite import PORT, Suite, assert_all_passed, example_suite, finish, somebody_listens

pytestmark = [
    pytest.mark.usefixtures("demo_port"),
    # Before its own time, a test may have to wait for the port until another worker's test is over.
    pytest.mark.timeout(400),
]


@pytest.fixture
def suite() -> Iterator[Suite]:
    with example_suite() as copied:
        yield copied


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    binaries = debian_binaries() or wheel_binaries() or missing("PostgreSQL")
    with running_server(binaries) as running:
        yield running


# --- what is an example --------------------------------------------------------------------------


def test_only_the_stories_are_examples(suite: Suite) -> None:
    told = suite.listed()
    assert [each["problems"] for each in told["examples"] if each["problems"]] == []
    assert {Path(each["path"]).name.partition("_")[0] for each in told["examples"]} == {"example"}
    helpers = {each["path"] for each in told["not_examples"]}
    assert {"examples/demo_data.py", "examples/demo_api/main.py"} <= helpers


def test_the_service_says_which_settings_it_lacks(suite: Suite) -> None:
    done = subprocess.run(
        [suite.project.python, "-c", "import demo_api.main"],
        cwd=suite.project.root / "examples",
        env=suite.project.environment({"DB_HOST": "localhost", "DB_NAME": "shop"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == (
        "demo_api.settings.SettingsError: set DB_USER, DB_OHLCV_NAME, JWT_SECRET "
        "before the service is imported"
    )


# --- they pass -----------------------------------------------------------------------------------


def test_all_pass_on_servers_of_their_own(suite: Suite) -> None:
    # The README's commands run them several times in a row.
    assert_all_passed(suite.run("--postgres", "embedded"))
    suite.assert_nothing_is_left()


def test_all_pass_on_a_server_that_is_configured(suite: Suite, server: Server) -> None:
    def state() -> list[str]:
        return server.sql(
            "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
        )

    before = state()
    assert_all_passed(suite.run("--postgres", server.url()))
    assert state() == before
    with suite.by_hand("example_health_check.py", {"E2E_RUN_POSTGRES": server.url()}) as example:
        code, output = finish(example)
    assert (code, state()) == (0, before), output
    suite.assert_nothing_is_left()


def test_each_passes_by_hand(suite: Suite) -> None:
    failed = {}
    for example in suite.listed()["examples"]:
        if example["serve"] is not None:
            continue  # it serves until it is stopped; the examples that need it start it
        done = subprocess.run(
            example["command"],
            cwd=suite.project.root,
            env=suite.project.environment(suite.how()["env"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            failed[example["path"]] = done.stdout
        suite.assert_nothing_is_left()
    assert failed == {}


# --- they are killed -----------------------------------------------------------------------------


def a_database_server_starts(running: Running, _: Suite) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(each.name().startswith("postgres") for each in running.offspring())
    return False


def the_service_listens(_: Running, __: Suite) -> bool:
    return somebody_listens()


def the_second_example_runs(_: Running, suite: Suite) -> bool:
    return len([*suite.project.root.glob(".e2e-run/runs/*/examples/*.log")]) > 1


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, a_database_server_starts),
        (signal.SIGKILL, the_service_listens),
        (signal.SIGKILL, the_second_example_runs),
        (signal.SIGINT, the_service_listens),
        (signal.SIGTERM, a_database_server_starts),
    ],
)
def test_a_run_that_is_ended_at_any_moment_is_followed_by_one_that_passes(
    suite: Suite, number: signal.Signals, moment: Callable[[Running, Suite], bool]
) -> None:
    with suite.running("examples/", env=ON_HOST) as running:
        wait_until(lambda: moment(running, suite), moment.__name__.replace("_", " "), seconds=60)
        started = running.offspring()
        running.process.send_signal(number)
        running.outcome()
    wait_gone(started)
    assert running.process.returncode == {2: 130, 15: 143, 9: -9}[number]
    assert_all_passed(suite.run("-k", "ohlcv_routes"))
    suite.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_example_that_is_ended_by_hand_leaves_nothing(
    suite: Suite, number: signal.Signals
) -> None:
    with suite.by_hand("example_jwt_login.py") as example:
        wait_until(somebody_listens, "the service listened", seconds=60)
        # What is looked for afterwards is there now.
        assert suite.folders_in_memory() or [*suite.scratch.rglob("PG_VERSION")]
        assert suite.project.survivors()
        started = psutil.Process(example.pid).children(recursive=True)
        example.send_signal(number)
        code, output = finish(example)
    assert code == {2: -2, 15: 143, 9: -9}[number], output
    wait_gone(started)
    with suite.by_hand("example_jwt_login.py") as example:
        assert finish(example)[0] == 0
    suite.assert_nothing_is_left()


# --- the port is taken ---------------------------------------------------------------------------


def test_a_taken_port_is_told_with_its_owner(suite: Suite) -> None:
    with socket.create_server(("127.0.0.1", PORT)):
        done = suite.run("examples/example_jwt_login.py", env=ON_HOST)
        with suite.by_hand("example_jwt_login.py") as example:
            code, output = finish(example)
    assert done.statuses == {"examples/example_jwt_login.py": "blocked"}
    assert code == 1
    for told in (done.stdout, output):
        assert f"port {PORT}" in told
        assert f"pid {os.getpid()}" in told
    suite.assert_nothing_is_left()
