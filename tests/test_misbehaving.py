"""The examples that misbehave, the market stream and the shell example, as users run them."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from harness import REPOSITORY, wait_gone, wait_until
from servers import running_server, some_binaries
from suite import STREAM_PORT, Suite, assert_all_passed, example_suite, finish, somebody_listens
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

pytestmark = [
    pytest.mark.usefixtures("demo_port"),  # which stands for the port of the stream, too
    # Before its own time, a test may have to wait for the port until another worker's test is over.
    pytest.mark.timeout(400),
]

FOLDER = "examples/misbehaving/"
EMAIL = f"{FOLDER}hard_codes_an_email.py"
DATABASE = f"{FOLDER}leaks_a_database.py"
SERVER = f"{FOLDER}leaves_a_server.py"
RETRY = f"{FOLDER}passes_on_retry.py"
FOREVER = f"{FOLDER}waits_forever.py"

STREAM_SERVER = "example_market_stream_server.py"
STREAM_CLIENT = "example_market_stream_client.py"
SHELL = "example_market_stream_shutdown.sh"


@pytest.fixture
def suite() -> Iterator[Suite]:
    with example_suite() as copied:
        yield copied


def files(suite: Suite) -> set[Path]:
    """List what is in the project, without what e2e-run keeps for itself."""
    root = suite.project.root
    kept = (root / ".e2e-run", suite.scratch)
    return {
        file
        for file in root.rglob("*")
        if not any(file.is_relative_to(each) for each in kept)
        and not file.name.startswith("report-")
    }


def kinds(example: dict[str, Any]) -> list[str]:
    return [leak["kind"] for leak in example["leaks"]]


def outcomes(example: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["title"], step["outcome"]) for step in example["steps"]]


# --- misbehaving ---------------------------------------------------------------------------------


def test_each_is_found_out_and_nothing_is_left(suite: Suite) -> None:
    before = files(suite)
    first = suite.run(FOLDER)
    assert first.code == 1
    assert first.statuses == {
        EMAIL: "failed",
        DATABASE: "leaked",
        SERVER: "leaked",
        RETRY: "failed",
        FOREVER: "timeout",
    }, first.stdout
    told = first.examples

    assert told[EMAIL]["cause"] == "unique-violation"
    assert told[EMAIL]["reason"] == 'exit code 1 in step "sign up Tina"'
    assert "whose email is tina@demo.example exists already" in told[EMAIL]["hints"][0]
    assert outcomes(told[EMAIL]) == [("count the traders", "ok"), ("sign up Tina", "failed")]

    (database,) = told[DATABASE]["leaks"]
    assert re.fullmatch(r"candle_archive_e2e_\d{8}_\d{6}_[0-9a-f]{6}_[0-9a-f]{6}", database["name"])
    assert told[DATABASE]["reason"] == f"left behind: database {database['name']}"
    assert told[DATABASE]["metrics"] == {"candles archived": 705}
    (advice,) = told[DATABASE]["hints"]
    assert advice.startswith("Drop it in `finally`, or have `e2e_runner.kit.databases` make it")
    assert f"Left behind: database {database['name']}: dropped\n" in first.stdout

    process, port = told[SERVER]["leaks"]
    assert process["command"].endswith(" -m http.server 8000 --bind 127.0.0.1")
    assert (process["ports"], port["port"]) == ([8000], 8000)
    assert told[SERVER]["reason"] == f"left behind: process {process['pid']}, port 8000"
    assert not psutil.pid_exists(process["pid"])
    (advice,) = told[SERVER]["hints"]
    assert advice.startswith("Stop what the script starts in `finally`")
    assert "listening on port 8000: killed\n" in first.stdout

    assert told[RETRY]["cause"] == "assertion"
    assert told[RETRY]["reason"] == 'exit code 1 in step "get the rates of the day"'

    assert told[FOREVER]["cause"] == "time-limit"
    assert re.fullmatch(
        r'timed out after 5s in step "wait for the news" \(for \d+\.?\d*m?s\)',
        told[FOREVER]["reason"],
    )
    (advice,) = told[FOREVER]["hints"]
    assert advice.startswith("Give what it waits for there a limit of its own (`wait_until(")
    assert advice.endswith("or raise `timeout` (5s) in its metadata.")
    summary = first.stdout.partition("Example Results Summary")[2]
    assert '  in "wait for the news"\n' in summary
    assert '  unique-violation in "sign up Tina":' in summary
    assert outcomes(told[FOREVER]) == [
        ("listen for fills", "ok"),
        ("fill the order", "ok"),
        ("wait for the news", "unfinished"),
    ]
    suite.assert_nothing_is_left()

    again = [EMAIL, DATABASE, SERVER, RETRY]
    second = suite.run(*again)
    assert second.code == 1
    expected = {each: first.statuses[each] for each in again} | {RETRY: "passed"}
    assert second.statuses == expected, second.stdout
    for same in (EMAIL, SERVER):
        assert second.examples[same]["cause"] == told[same]["cause"]
        assert outcomes(second.examples[same]) == outcomes(told[same])
        assert kinds(second.examples[same]) == kinds(told[same])
    assert kinds(second.examples[DATABASE]) == ["database"]
    assert second.examples[DATABASE]["leaks"] != told[DATABASE]["leaks"], "the name is unique"
    suite.assert_nothing_is_left()
    assert files(suite) == before


def test_leaks_alone_fail_a_run_only_if_it_is_strict(suite: Suite) -> None:
    python = ("--python", str(suite.project.python))
    lenient = suite.project.run(*python, DATABASE, SERVER, **suite.how())
    assert (lenient.code, {*lenient.statuses.values()}) == (0, {"leaked"})
    strict = suite.run(DATABASE, SERVER)
    assert (strict.code, strict.statuses) == (1, lenient.statuses)
    suite.assert_nothing_is_left()


def test_a_database_leaked_on_a_configured_server_is_dropped(suite: Suite) -> None:
    with running_server(some_binaries()) as server:

        def state() -> list[str]:
            return server.sql(
                "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
            )

        before = state()
        done = suite.run("--postgres", server.url(), DATABASE, EMAIL)
        assert done.statuses == {DATABASE: "leaked", EMAIL: "failed"}, done.stdout
        assert kinds(done.examples[DATABASE]) == ["database"]
        assert done.examples[EMAIL]["cause"] == "unique-violation"
        assert state() == before
    suite.assert_nothing_is_left()


def test_without_naming_the_folder_they_are_no_examples(suite: Suite) -> None:
    told = suite.listed()
    assert [each["path"] for each in told["examples"] if each["path"].startswith(FOLDER)] == []


def test_by_hand_they_misbehave_likewise(suite: Suite) -> None:
    before = files(suite)
    with suite.by_hand("misbehaving/hard_codes_an_email.py") as example:
        code, output = finish(example)
    assert code == 1
    assert "✗ sign up Tina" in output
    assert output.endswith("DETAIL:  Key (email)=(tina@demo.example) already exists.\n")
    for expected in (1, 0, 1, 0):
        with suite.by_hand("misbehaving/passes_on_retry.py") as example:
            assert finish(example)[0] == expected
    suite.assert_nothing_is_left()
    assert files(suite) == before


def test_by_hand_the_one_that_waits_is_ended_by_ctrl_c(suite: Suite) -> None:
    with suite.by_hand("misbehaving/waits_forever.py", {"E2E_VERBOSE": "true"}) as example:
        assert example.stdout is not None
        told = ""
        while "→ wait for the news" not in told:
            line = example.stdout.readline()
            assert line, told
            told += line
        started = psutil.Process(example.pid).children(recursive=True)
        example.send_signal(signal.SIGINT)
        code, output = finish(example)
    assert code == -signal.SIGINT, output
    wait_gone(started)
    suite.assert_nothing_is_left()


# --- the market stream ---------------------------------------------------------------------------


def test_the_stream_and_its_client_pass_under_the_runner(suite: Suite) -> None:
    done = suite.run("-k", "market_stream")
    assert_all_passed(done)
    told = {Path(path).name: example for path, example in done.examples.items()}
    assert told[STREAM_SERVER]["status"] == "served"
    assert told[STREAM_CLIENT]["status"] == told[SHELL]["status"] == "passed"
    metrics = told[STREAM_CLIENT]["metrics"]
    assert metrics["messages"] > metrics["missed and made up for"] >= 30
    suite.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_stream_ends_in_order_though_somebody_listens(
    suite: Suite, number: signal.Signals
) -> None:
    async def follow(server: "subprocess.Popen[str]") -> int:
        async with connect(f"ws://127.0.0.1:{STREAM_PORT}", proxy=None) as socket:
            await socket.send(json.dumps({"type": "subscribe", "symbol": "ETH-USDT"}))
            assert json.loads(await socket.recv())["type"] == "subscribed"
            server.send_signal(number)
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            code = socket.close_code
            assert code is not None
            return code

    with suite.by_hand(STREAM_SERVER) as server:
        assert server.stdout is not None
        assert "until Ctrl-C" in server.stdout.readline()
        assert asyncio.run(follow(server)) == 1001  # going away
        code, output = finish(server)
    assert (code, output) == (0, "Stopped\n")
    suite.assert_nothing_is_left()


def test_the_client_by_hand_is_ended_with_its_companion(suite: Suite) -> None:
    with suite.by_hand(STREAM_CLIENT) as client:
        wait_until(lambda: somebody_listens(STREAM_PORT), "the companion listened", seconds=60)
        started = psutil.Process(client.pid).children(recursive=True)
        client.send_signal(signal.SIGTERM)
        code, output = finish(client)
    assert code == 143, output
    wait_gone(started)
    suite.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("sequence = message", "sequence = 1 + message", "lost"),
        ('"bid": self._bid,', '"bid": self._bid - 1,', "a sell after"),
        ('"unknown-symbol"', '"bad-request"', "unknown-symbol"),
    ],
)
def test_the_client_sees_what_is_wrong_with_the_stream(
    suite: Suite, right: str, wrong: str, told: str
) -> None:
    file = suite.project.root / "examples" / STREAM_SERVER
    text = file.read_text("utf-8")
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong), "utf-8")
    with suite.by_hand(STREAM_CLIENT) as client:
        code, output = finish(client)
    assert code == 1
    assert "CheckFailed" in output
    assert told in output
    suite.assert_nothing_is_left()


def stream_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stream", REPOSITORY / "examples" / STREAM_SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def exhaust(messages: AsyncIterator[Any]) -> None:
    async for _ in messages:
        pass


def test_the_stream_refuses_what_it_no_longer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stream_module()
    monkeypatch.setattr(module, "MESSAGES_KEPT", 5)
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0)

    async def story() -> None:
        market = module.Market("X", 100)
        moving = asyncio.create_task(market.move())
        keeping_up = market.after(0)
        falling_behind = market.after(0)
        await anext(falling_behind)
        assert [(await anext(keeping_up))["sequence"] for _ in range(20)] == [*range(1, 21)]
        with pytest.raises(module.TooOldError):
            await exhaust(falling_behind)
        with pytest.raises(module.TooOldError):
            await exhaust(market.after(market.latest - 6))
        assert (await anext(market.after(market.latest - 5)))["sequence"] == market.latest - 4
        moving.cancel()

    asyncio.run(story())


# --- the shell example ---------------------------------------------------------------------------


@contextlib.contextmanager
def shell(suite: Suite, cwd: Path, command: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the shell example by hand, in a folder, as one says it there."""
    environment = suite.project.environment(suite.how()["env"])
    with subprocess.Popen(
        ["bash", command],
        cwd=cwd,
        env=environment | {"PYTHON": str(suite.project.python)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_shell_example_passes_by_hand_from_any_folder(suite: Suite) -> None:
    root = suite.project.root
    for cwd, command in (
        (root, f"examples/{SHELL}"),
        (root / "examples", SHELL),
        (Path("/"), f"{root}/examples/{SHELL}"),
    ):
        with shell(suite, cwd, command) as example:
            code, output = finish(example)
        assert code == 0, output
        assert "✓ The server comes up, and ends in order\n" in output
        suite.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (
            'print("Stopped")',
            "raise SystemExit(3)",
            "the exit code after SIGTERM: expected 0, got 3",
        ),
        ("HTTPStatus.OK", "HTTPStatus.ACCEPTED", "the server is well: expected 200, got 202"),
        ("asyncio.run(main())", "raise SystemExit(1)", "the server has ended"),
    ],
)
def test_the_shell_example_sees_what_is_wrong(
    suite: Suite, right: str, wrong: str, told: str
) -> None:
    file = suite.project.root / "examples" / STREAM_SERVER
    text = file.read_text("utf-8")
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong), "utf-8")
    with shell(suite, suite.project.root, f"examples/{SHELL}") as example:
        code, output = finish(example)
    assert code == 1, output
    assert f"{told}\n" in output
    suite.assert_nothing_is_left()


def test_the_shell_example_says_that_its_port_is_taken(suite: Suite) -> None:
    with suite.by_hand(STREAM_SERVER) as server:
        assert server.stdout is not None
        assert "until Ctrl-C" in server.stdout.readline()
        with shell(suite, suite.project.root, f"examples/{SHELL}") as example:
            code, output = finish(example)
        assert code == 1
        assert f"port {STREAM_PORT} is taken" in output
        server.send_signal(signal.SIGINT)
        assert finish(server)[0] == 0
    suite.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_shell_example_takes_its_server_with_it(suite: Suite, number: signal.Signals) -> None:
    file = suite.project.root / "examples" / STREAM_SERVER
    text = file.read_text("utf-8")
    right = "    if request.path"
    assert text.count(right) == 1
    # It answers nothing, so that the script keeps waiting.
    file.write_text(text.replace(right, f"    signal.pause()\n{right}"), "utf-8")
    with shell(suite, suite.project.root, f"examples/{SHELL}") as example:
        wait_until(lambda: somebody_listens(STREAM_PORT), "the server listened", seconds=60)
        started = psutil.Process(example.pid).children(recursive=True)
        os.killpg(example.pid, number)  # as a terminal does
        code, output = finish(example)
    assert code == -number, output
    wait_gone(started)
    suite.assert_nothing_is_left()
