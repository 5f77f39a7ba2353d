"""Ports that are taken, waited for, left behind and freed again, in real runs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    IS_ROOT,
    NOBODY,
    Project,
    free_port,
    in_tier,
    overrides,
    project,
    wait_lines,
    wait_until,
)

LISTENS = """
import signal, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(server.getsockname()[1], flush=True)
signal.pause()
"""


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as fresh:
        yield fresh


@contextlib.contextmanager
def listener(tags: dict[str, str], port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process that listens, with these variables in its environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("E2E_RUN")}
    with subprocess.Popen(
        [sys.executable, "-c", LISTENS, "127.0.0.1", str(port)],
        env=env | tags,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def configure(made: Project, settings: dict[str, list[str]], *lines: str) -> None:
    made.write(
        "e2e-run.toml", "\n".join([f'python = "{made.python}"', *lines, overrides(settings)])
    )


def wants(made: Project, name: str, port: int, *lines: str) -> str:
    """Write a script that binds a port and declares it."""
    metadata = "\n".join(f"# {line}" for line in [f"ports = [{port}]", *lines])
    made.write(
        name,
        f"# /// script\n# [tool.e2e-run]\n{metadata}\n# ///\n"
        "import socket, sys\n"
        f"socket.create_server(('127.0.0.1', {port})).close()\n"
        "print('it was free')\n",
    )
    return name


# --- taken ports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104 - what is in the way
def test_a_taken_port_that_is_declared_blocks(made: Project, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        port = sock.getsockname()[1]
        outcome = made.run(wants(made, "wants.py", port))
    example = outcome.examples["wants.py"]
    assert outcome.code == 3
    assert (example["status"], example["cause"], example["attempts"]) == (
        "blocked",
        "port-in-use",
        0,
    )
    owner = f"port {port} is taken by pid {os.getpid()} ("
    assert example["reason"].startswith(owner)
    assert Path(sys.executable).name in example["reason"]
    assert example["hints"] == [
        f"Stop it (kill {os.getpid()}), or wait for it with --on-port-conflict wait."
    ]
    assert owner in outcome.stdout


def test_a_port_that_is_only_mentioned_warns(made: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        made.write("mentions.py", f"URL = 'http://localhost:{port}/'\nprint(URL)\n")
        outcome = made.run("mentions.py")
    assert (outcome.code, outcome.statuses) == (0, {"mentions.py": "passed"})
    (warning,) = (line for line in outcome.stdout.splitlines() if line.startswith("warning: "))
    assert warning.startswith(f"warning: mentions.py: port {port} is taken by pid {os.getpid()} (")
    assert warning.endswith("; its source mentions that port")


def test_port_that_it_was_seen_to_listen_on_is_told_of_when_it_is_taken(made: Project) -> None:
    made.write(
        "a.py",
        "import os, socket, time\n"
        "with socket.socket() as server:\n"
        "    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    try:\n"
        "        server.bind(('127.0.0.1', int(os.environ['SECRET'])))\n"
        "    except OSError:\n"
        "        raise SystemExit\n"
        "    server.listen()\n"
        "    time.sleep(3)  # no synchronisation: it is to be seen by a look of the runner\n",
    )
    port = free_port()
    learnt = made.run("a.py", "--env", f"SECRET={port}")
    assert learnt.examples["a.py"]["listened"] == [port]
    with socket.create_server(("127.0.0.1", port)):
        done = made.run("a.py", "--env", f"SECRET={port}")
    assert f"port {port} is taken" in done.stdout
    assert "; it listened on that port in earlier runs" in done.stdout
    assert done.statuses == {"a.py": "passed"}


def test_service_that_it_uses_is_not_in_its_way(made: Project) -> None:
    port = free_port()
    made.write("a.py", f"import socket\nsocket.create_connection(('127.0.0.1', {port})).close()\n")
    with socket.create_server(("127.0.0.1", port)):
        first = made.run("a.py")
        second = made.run("a.py")
    assert "its source mentions that port" in first.stdout
    assert "mentions" not in second.stdout
    assert (first.code, second.code) == (0, 0)


def test_a_port_that_a_client_goes_to_is_expected_to_be_taken(made: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        made.write("_client.py", f"def get(Redis):\n    return Redis('localhost', {port})\n")
        made.write("cache.py", "from _client import get\nprint(get(print))\n")
        outcome = made.run("cache.py")
    assert (outcome.code, outcome.statuses) == (0, {"cache.py": "passed"})
    assert "warning" not in outcome.stdout


def test_a_port_of_a_helper_is_a_lock(made: Project) -> None:
    made.write(
        "_common.py",
        "import os, time\n"
        f"def server(port={free_port()}):\n"
        "    os.close(os.open('inside', os.O_CREAT | os.O_EXCL))  # fails where somebody is inside\n"
        "    time.sleep(0.05)  # no synchronisation: time in which a mistake would show\n"
        "    os.remove('inside')\n",
    )
    for name in "abcd":
        made.write(f"{name}.py", "from _common import server\nserver()\n")
    done = made.run(".", "-j", "4")
    assert done.statuses == dict.fromkeys(("a.py", "b.py", "c.py", "d.py"), "passed"), done.stdout


def test_a_failed_bind_names_the_owner(made: Project) -> None:
    made.child("port_wanted.py")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        outcome = made.run("port_wanted.py", env={"E2E_CHILD_PORT": str(port)})
        # Named even where neither the script nor its output says which port it was.
        made.write(
            "silent.py",
            f"import sys\nPORT = {port}\nURL = 'http://localhost:{port}'\n"
            "sys.exit('OSError: [Errno 98] Address already in use')\n",
        )
        silent = made.run("silent.py")
    example = outcome.examples["port_wanted.py"]
    assert outcome.code == 1
    assert (example["status"], example["cause"]) == ("failed", "port-in-use")
    assert "Address already in use" in example["output_tail"]
    assert any(f"port {port} is taken by pid {os.getpid()} (" in h for h in example["hints"])
    found = silent.examples["silent.py"]
    assert (found["status"], found["cause"]) == ("failed", "port-in-use")
    assert any(f"port {port} is taken by pid {os.getpid()} (" in h for h in found["hints"])


@pytest.mark.skipif(not IS_ROOT, reason="starts a run of another user")
def test_an_owner_that_is_not_visible_is_said_plainly() -> None:
    with in_tier("scan", NOBODY) as made, socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        outcome = made.run(wants(made, "wants.py", port))
    example = outcome.examples["wants.py"]
    assert (outcome.code, example["status"]) == (3, "blocked")
    assert example["reason"].startswith(f"port {port} is taken: its process is not visible to you")
    assert "user root (uid 0)" in example["reason"]


# --- what to do about them -----------------------------------------------------------------------


def test_waiting_for_a_port_ends_when_it_is_free(made: Project) -> None:
    events = made.root / "events.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        name = wants(made, "wants.py", port)
        args = ("--on-port-conflict", "wait", "--report", f"jsonl={events}", "-t", "30s")
        with made.running(*args, name) as running:
            wait_until(
                lambda: events.exists() and "waiting for port" in events.read_text(),
                "the example waited",
            )
            sock.close()
            outcome = running.outcome()
    assert (outcome.code, outcome.statuses) == (0, {"wants.py": "passed"})


def test_waiting_for_a_port_ends_with_the_time_limit(made: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        name = wants(made, "wants.py", sock.getsockname()[1])
        outcome = made.run("--on-port-conflict", "wait", "-t", "300ms", name)
    example = outcome.examples["wants.py"]
    assert (outcome.code, example["status"], example["cause"]) == (3, "blocked", "port-in-use")
    assert example["reason"].endswith("; waited 300ms")
    assert example["hints"] == [
        f"Stop it (kill {os.getpid()}), or let the example wait longer with a longer --timeout."
    ]


def test_a_wait_for_a_port_is_interruptible(made: Project) -> None:
    events = made.root / "events.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        name = wants(made, "wants.py", sock.getsockname()[1])
        args = ("--on-port-conflict", "wait", "--report", f"jsonl={events}")
        with made.running(*args, name) as running:
            wait_until(
                lambda: events.exists() and "waiting for port" in events.read_text(),
                "the example waited",
            )
            running.process.terminate()
            outcome = running.outcome(timeout=20)
    assert (outcome.code, outcome.statuses) == (143, {"wants.py": "not-run"})


def test_examples_whose_port_is_taken_can_be_skipped(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        name = wants(made, "wants.py", port)
        both = made.run("--on-port-conflict", "skip", "passes.py", name)
        alone = made.run("--on-port-conflict", "skip", name)
    assert both.code == 0
    assert both.statuses == {"passes.py": "passed", "wants.py": "skipped"}
    assert both.examples["wants.py"]["reason"].startswith(f"port {port} is taken by pid ")
    assert (alone.code, alone.statuses) == (4, {"wants.py": "skipped"})


def test_what_an_earlier_run_left_is_stopped_only_when_asked(made: Project) -> None:
    tags = {
        "E2E_RUN": "1",
        "E2E_RUN_ID": "20200101-000000-abcdef",
        "E2E_RUN_PROJECT": str(made.root.resolve()),
    }
    with listener(tags) as (process, port):
        name = wants(made, "wants.py", port)
        named = made.run(name)
        example = named.examples["wants.py"]
        assert (named.code, example["status"]) == (3, "blocked")
        assert f"by pid {process.pid} (" in example["reason"]
        assert example["reason"].endswith(", left by an earlier run")
        assert example["hints"] == [
            f"Run again with --free-ports to have it stopped, or stop it yourself: kill {process.pid}."
        ]
        assert process.poll() is None
        freed = made.run("--free-ports", name)
        assert (freed.code, freed.statuses) == (0, {"wants.py": "passed"})
        assert "left by an earlier run: stopped by SIGTERM" in freed.stdout
        assert process.wait(10) == -15


def test_a_stranger_is_never_stopped(made: Project, tmp_path: Path) -> None:
    root = str(made.root.resolve())
    made.child("hang.py")
    ready = made.root / "ready"
    with contextlib.ExitStack() as stack:
        # A run of this project that is alive: what it started is no leftover.
        live = made.running("hang.py", env={"E2E_CHILD_READY": str(ready)})
        running = stack.enter_context(live)
        wait_lines(ready)
        (alive,) = made.root.glob(".e2e-run/runs/*")
        all_tags: list[dict[str, str]] = [
            {},
            {"E2E_RUN": "1", "E2E_RUN_ID": "20200101-000000-abcdef"},
            {"E2E_RUN": "1", "E2E_RUN_ID": "old", "E2E_RUN_PROJECT": str(tmp_path)},
            {"E2E_RUN": "1", "E2E_RUN_ID": "old", "E2E_RUN_PROJECT": f"{root}/below"},
            {"E2E_RUN": "1", "E2E_RUN_ID": alive.name, "E2E_RUN_PROJECT": root},
        ]
        strangers = [stack.enter_context(listener(tags)) for tags in all_tags]
        names = [wants(made, f"{n}.py", port) for n, (_, port) in enumerate(strangers)]
        outcome = made.run("--free-ports", *names)
        assert set(outcome.statuses.values()) == {"blocked"}
        assert outcome.code == 3
        assert [process.poll() for process, _ in strangers] == [None] * len(strangers)
        assert "left by an earlier run" not in json.dumps(outcome.report)
        running.process.terminate()
        assert running.outcome().code == 143


# --- left behind ---------------------------------------------------------------------------------


def test_a_port_that_one_script_leaves_is_free_for_the_next(made: Project) -> None:
    port = free_port()
    for name in ("port_left.py", "port_wanted.py"):
        made.child(name)
    settings = [f"ports = [{port}]", f'env = {{ E2E_CHILD_PORT = "{port}" }}']
    configure(made, {"port_*.py": settings})
    outcome = made.run("port_left.py", "port_wanted.py")
    assert outcome.code == 0
    assert outcome.statuses == {"port_left.py": "leaked", "port_wanted.py": "passed"}
    process, left = outcome.examples["port_left.py"]["leaks"]
    assert (process["kind"], process["ports"]) == ("process", [port])
    assert left == {
        "kind": "port",
        "port": port,
        "owner": f"pid {process['pid']} ({process['command']})",
    }
    assert made.survivors() == []
    strict = made.run("--strict", "port_left.py", "port_wanted.py")
    assert (strict.code, strict.statuses) == (1, outcome.statuses)


@pytest.mark.parametrize("alive", [True, False])
def test_what_a_run_beside_this_one_listens_on_is_no_leak(made: Project, *, alive: bool) -> None:
    """What a run that is over has left may be one that the example made itself."""
    port = free_port()
    made.child("hang.py")
    made.write(
        "waits.py",
        "import pathlib, time\n"
        "pathlib.Path('here').touch()\n"
        "deadline = time.monotonic() + 30\n"
        "while not pathlib.Path('there').exists():\n"
        "    assert time.monotonic() < deadline, 'nobody came'\n"
        "    time.sleep(0.01)\n",
    )
    configure(made, {"waits.py": [f"ports = [{port}]"]})
    ready = made.root / "ready"
    with made.running("hang.py", env={"E2E_CHILD_READY": str(ready)}) as beside:
        wait_lines(ready)
        (live,) = made.root.glob(".e2e-run/runs/*")
        tags = {
            "E2E_RUN": "1",
            "E2E_RUN_ID": live.name if alive else "20200101-000000-abcdef",
            "E2E_RUN_EXAMPLE": "hang.py",
            "E2E_RUN_PROJECT": str(made.root.resolve()),
        }
        with made.running("waits.py") as running:
            wait_until((made.root / "here").exists, "the example ran")
            with listener(tags, port):
                (made.root / "there").touch()
                outcome = running.outcome(timeout=30)
        beside.process.terminate()
        assert beside.outcome().code == 143
    assert outcome.statuses == {"waits.py": "passed" if alive else "leaked"}


def test_a_port_that_a_server_gives_back_late_is_no_leak(made: Project) -> None:
    port = free_port()
    # A connection that the server closed first lingers on the port, without a listener.
    made.write(
        "closes_first.py",
        "import socket\n"
        f"server = socket.create_server(('127.0.0.1', {port}))\n"
        f"client = socket.create_connection(('127.0.0.1', {port}))\n"
        "served, _ = server.accept()\n"
        "served.close()\n"
        "client.recv(1)\n"
        "client.close()\n"
        "print('closed')\n",
    )
    settings = [f"ports = [{port}]"]
    configure(made, {"closes_first.py": settings, "wants.py": settings})
    outcome = made.run("closes_first.py", wants(made, "wants.py", port))
    assert outcome.statuses == {"closes_first.py": "passed", "wants.py": "passed"}
    assert outcome.code == 0
