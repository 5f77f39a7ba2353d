"""Examples that are servers by design, and companions that an example needs."""

import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import Outcome, Project, free_port, project

SIDE_BY_SIDE = {"E2E_RUN_JOBS": "4"}  # they spend their time waiting

ASKS = """
import os, urllib.request
url = f"http://127.0.0.1:{os.environ['E2E_CHILD_PORT']}/"
assert urllib.request.urlopen(url).read() == b"hello\\n"
print("the companion answered")
"""

# Listens at once, but only after what it depends on does.
LISTENS_AFTER = """
import socket
from _http import serve
socket.create_connection(("127.0.0.1", {other})).close()
serve(lambda: 200)
"""

IGNORES_ALL = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("stubborn and ready", flush=True)
while True:
    signal.pause()
"""

STOPS_CLEANLY = """
import pathlib, signal, sys
from _http import serve
def stop(number, frame):
    pathlib.Path("stopped-by").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
serve(lambda: 200)
"""

ENDS_WHEN_ASKED = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello\\n")
server = HTTPServer(("127.0.0.1", int(os.environ["E2E_CHILD_PORT"])), Handler)
server.handle_request()  # of the one who looks whether it is ready
server.handle_request()  # of the script
os._exit(0)
"""

OUTLIVES = (
    ASKS
    + """
try:
    while True:
        urllib.request.urlopen(url)
except OSError:
    print("it is gone")
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    project: Project
    outcome: Outcome
    ports: dict[str, int]


def add(made: Project, name: str, *lines: str, source: str | None = None, child: str = "") -> None:
    """Write a script, from a misbehaving child or its source, and an override with these lines."""
    if child:
        file = made.child(child)
        file.rename(made.root / name)
    else:
        made.write(name, source or "")
    config = made.root / "e2e-run.toml"
    config.write_text(
        config.read_text() + f'[[overrides]]\nmatch = "{name}"\n' + "\n".join(lines) + "\n"
    )


def env(port: int) -> str:
    return f'env = {{ E2E_CHILD_PORT = "{port}" }}'


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    """Run servers of every kind once, and an example with companions."""
    with project() as made:
        ports = {
            name: free_port()
            for name in (
                *("http", "tcp", "log", "cleanly", "503", "no", "undeclared", "a", "b", "c"),
                "ends",
            )
        }
        go = made.root / "go"

        def at(name: str) -> str:
            return f"127.0.0.1:{ports[name]}"

        server = "server_undeclared.py"
        add(
            made,
            "serves_http.py",
            env(ports["http"]),
            f'serve = "http://{at("http")}/"',
            child=server,
        )
        add(made, "serves_tcp.py", env(ports["tcp"]), f'serve = "tcp://{at("tcp")}"', child=server)
        add(
            made,
            "serves_log.py",
            env(ports["log"]),
            'serve = "log:^listening on port"',
            child=server,
        )
        add(
            made,
            "stops_cleanly.py",
            env(ports["cleanly"]),
            f'serve = "tcp://{at("cleanly")}"',
            source=STOPS_CLEANLY,
        )
        add(made, "stubborn.py", 'serve = "log:ready$"', 'grace = "200ms"', source=IGNORES_ALL)
        add(
            made,
            "always_503.py",
            f'env = {{ E2E_CHILD_PORT = "{ports["503"]}", E2E_CHILD_GO = "{go}" }}',
            f'serve = "http://{at("503")}/health"',
            'timeout = "3s"',
            child="server_slow_ready.py",
        )
        add(made, "no_tcp.py", f'serve = "tcp://{at("no")}"', 'timeout = "1s"', child="hang.py")
        add(made, "no_line.py", 'serve = "log:^ready"', 'timeout = "2500ms"', child="hang.py")
        add(made, "dies.py", f'serve = "tcp://{at("no")}"', child="server_dies.py")
        add(made, "ends.py", 'serve = "log:never written"', child="passes.py")
        add(made, "undeclared.py", env(ports["undeclared"]), 'timeout = "3s"', child=server)
        add(made, "first.py", env(ports["a"]), f"ports = [{ports['a']}]", child=server)
        add(
            made,
            "second.py",
            env(ports["b"]),
            f'serve = "http://{at("b")}/"',
            source=LISTENS_AFTER.format(other=ports["a"]),
        )
        add(made, "asks.py", env(ports["b"]), 'needs = ["first.py", "second.py"]', source=ASKS)
        add(
            made,
            "companion_ends.py",
            env(ports["ends"]),
            f'serve = "http://{at("ends")}/"',
            source=ENDS_WHEN_ASKED,
        )
        add(
            made,
            "outlives.py",
            env(ports["ends"]),
            'needs = ["companion_ends.py"]',
            source=OUTLIVES,
        )
        selected = [
            *(
                "serves_http.py",
                "serves_tcp.py",
                "serves_log.py",
                "stops_cleanly.py",
                "stubborn.py",
                "always_503.py",
            ),
            *("no_tcp.py", "no_line.py", "dies.py", "ends.py", "undeclared.py"),
            *("asks.py", "outlives.py"),
        ]
        yield Ran(project=made, outcome=made.run(*selected, env=SIDE_BY_SIDE), ports=ports)


@pytest.mark.parametrize(
    "name", ["serves_http.py", "serves_tcp.py", "serves_log.py", "stops_cleanly.py"]
)
def test_a_server_that_becomes_ready_is_served(ran: Ran, name: str) -> None:
    example = ran.outcome.examples[name]
    assert (example["status"], example["cause"], example["leaks"]) == ("served", None, [])
    assert example["duration"] < 5


def test_what_said_that_it_was_ready_is_noted(ran: Ran) -> None:
    said = {
        name: ran.outcome.examples[name]["notes"][0].partition(": ")[2]
        for name in ("serves_http.py", "serves_tcp.py", "serves_log.py")
    }
    assert said == {
        "serves_http.py": "200 OK",
        "serves_tcp.py": "connection accepted",
        "serves_log.py": f"listening on port {ran.ports['log']}",
    }


def test_a_ready_server_is_first_stopped_as_by_ctrl_c(ran: Ran) -> None:
    assert (ran.project.root / "stopped-by").read_text() == signal.SIGINT.name


def test_a_ready_server_that_will_not_stop_is_killed(ran: Ran) -> None:
    example = ran.outcome.examples["stubborn.py"]
    assert (example["status"], example["signal"]) == ("served", "SIGKILL")
    assert example["reason"] == "ignored SIGTERM for 200ms, killed"


def test_a_server_that_is_not_ready_in_time_says_what_was_missing(ran: Ran) -> None:
    seen = [ran.outcome.examples[name] for name in ("always_503.py", "no_tcp.py", "no_line.py")]
    assert {(example["status"], example["cause"]) for example in seen} == {("timeout", "not-ready")}
    assert [example["reason"].partition(": ") for example in seen] == [
        (
            *("not ready after 3s", ": "),
            f"http://127.0.0.1:{ran.ports['503']}/health: last answer: 503 Service Unavailable",
        ),
        ("not ready after 1s", ": ", f"tcp://127.0.0.1:{ran.ports['no']}: connection refused"),
        (
            *("not ready after 2.5s", ": "),
            "log:^ready: no line of the output matched; the last one: hanging",
        ),
    ]


def test_a_server_that_dies_before_it_is_ready_failed(ran: Ran) -> None:
    example = ran.outcome.examples["dies.py"]
    assert (example["status"], example["cause"]) == ("failed", "exited-before-ready")
    assert example["reason"].startswith("exit code 3 before it was ready")
    assert "cannot open the database of the server" in example["output_tail"]


def test_a_server_that_ends_well_before_it_is_ready_failed(ran: Ran) -> None:
    example = ran.outcome.examples["ends.py"]
    assert (example["status"], example["cause"]) == ("failed", "exited-before-ready")
    assert example["reason"].startswith("exit code 0 before it was ready: log:never written")


def test_an_undeclared_server_is_told_how_to_declare_itself(ran: Ran) -> None:
    example = ran.outcome.examples["undeclared.py"]
    assert (example["status"], example["cause"]) == ("timeout", "time-limit")
    lines = [
        "# /// script",
        "# [tool.e2e-run]",
        f'# serve = "tcp://127.0.0.1:{ran.ports["undeclared"]}"',
        "# ///",
    ]
    (hint,) = (hint for hint in example["hints"] if "It was listening" in hint)
    assert hint.splitlines()[1:] == lines
    shown = [line.strip() for line in ran.outcome.stdout.splitlines()]
    first = shown.index(lines[0])
    assert shown[first : first + 4] == lines


def test_companions_are_started_in_order_and_stopped_after(ran: Ran) -> None:
    example = ran.outcome.examples["asks.py"]
    assert (example["status"], example["leaks"], example["notes"]) == ("passed", [], [])
    assert ran.project.survivors() == []
    for port in (ran.ports["a"], ran.ports["b"]):
        with socket.create_server(("127.0.0.1", port)):
            pass  # it is free again


def test_companions_have_logs_of_their_own(ran: Ran) -> None:
    logs = ran.project.root / ran.outcome.examples["asks.py"]["log"]
    assert logs.read_text() == "the companion answered\n"
    (log,) = logs.parent.glob("second.py*")
    assert log.read_text().startswith(f"listening on port {ran.ports['b']}\n")


def test_a_companion_that_ended_before_its_time_is_noted(ran: Ran) -> None:
    example = ran.outcome.examples["outlives.py"]
    assert example["status"] == "passed"
    assert example["notes"] == ["companion companion_ends.py ended by itself: exit code 0"]


@pytest.fixture(scope="module")
def blocked() -> Iterator[Ran]:
    with project() as made, socket.create_server(("127.0.0.1", 0)) as stranger:
        ports = {"stranger": stranger.getsockname()[1], "503": free_port(), "dies": free_port()}
        add(
            made,
            "never_ready.py",
            f'env = {{ E2E_CHILD_PORT = "{ports["503"]}", E2E_CHILD_GO = "/nonexistent" }}',
            f'serve = "http://127.0.0.1:{ports["503"]}/"',
            'timeout = "3s"',
            child="server_slow_ready.py",
        )
        add(made, "dies.py", f"ports = [{ports['dies']}]", child="server_dies.py")
        add(made, "says_nothing.py", child="hang.py")
        add(made, "no_interpreter.py", 'serve = "log:x"', 'interpreter = "/nonexistent/python"')
        for companion in ("never_ready", "dies", "says_nothing", "no_interpreter"):
            add(
                made,
                f"needs_{companion}.py",
                f'needs = ["{companion}.py"]',
                source="raise SystemExit(9)",
            )
        serve = f'serve = "tcp://127.0.0.1:{ports["stranger"]}"'
        add(made, "shadowed.py", serve, 'timeout = "2s"', child="hang.py")
        add(made, "shadowed_companion.py", serve, child="hang.py")
        add(
            made,
            "needs_shadowed.py",
            'needs = ["shadowed_companion.py"]',
            source="raise SystemExit(9)",
        )
        names = [file.name for file in made.root.glob("needs_*.py")]
        yield Ran(
            project=made,
            outcome=made.run("shadowed.py", *sorted(names), env=SIDE_BY_SIDE),
            ports=ports,
        )


def test_a_run_with_blocked_examples_only_exits_3(blocked: Ran) -> None:
    assert set(blocked.outcome.statuses.values()) == {"blocked"}
    assert blocked.outcome.code == 3
    assert blocked.project.survivors() == []


def test_an_example_whose_companion_is_not_ready_is_blocked(blocked: Ran) -> None:
    example = blocked.outcome.examples["needs_never_ready.py"]
    assert (example["cause"], example["attempts"]) == ("companion-not-ready", 0)
    assert example["reason"].startswith("companion never_ready.py: not ready after 3")
    assert example["reason"].endswith("last answer: 503 Service Unavailable")
    # Its last lines are shown too: those before it was stopped, which tell why.
    assert "KeyboardInterrupt" not in example["output_tail"]
    assert example["output_tail"].startswith(f"listening on port {blocked.ports['503']}\n")
    assert f"│ listening on port {blocked.ports['503']}" in blocked.outcome.stdout


def test_an_example_whose_companion_dies_is_blocked(blocked: Ran) -> None:
    example = blocked.outcome.examples["needs_dies.py"]
    assert example["cause"] == "companion-not-ready"
    assert example["reason"].startswith("companion dies.py: its process ended after ")
    assert example["output_tail"] == "cannot open the database of the server\n"
    assert "│ cannot open the database of the server" in blocked.outcome.stdout


def test_a_companion_that_does_not_say_when_it_is_ready_is_advised(blocked: Ran) -> None:
    example = blocked.outcome.examples["needs_says_nothing.py"]
    assert example["cause"] == "companion-not-ready"
    assert example["reason"] == (
        "companion says_nothing.py declares neither `serve` nor `ports`, "
        "so nothing can tell when it is ready"
    )
    assert example["hints"] == [
        'Add `serve = "http://127.0.0.1:PORT/"` to the metadata of says_nothing.py.'
    ]


def test_a_companion_that_cannot_be_started_is_told(blocked: Ran) -> None:
    example = blocked.outcome.examples["needs_no_interpreter.py"]
    assert example["cause"] == "companion-not-ready"
    assert example["reason"] == (
        "companion no_interpreter.py could not be started: "
        "/nonexistent/python cannot be run: No such file or directory"
    )


@pytest.mark.parametrize("name", ["shadowed.py", "needs_shadowed.py"])
def test_a_stranger_on_its_port_makes_no_server_look_ready(blocked: Ran, name: str) -> None:
    example = blocked.outcome.examples[name]
    assert (example["status"], example["cause"]) == ("blocked", "port-in-use")
    assert example["reason"].startswith(f"port {blocked.ports['stranger']} is taken by pid ")


# --- servers that are not declared ----------------------------------------------------------------

HANGS_BESIDE_ITS_SERVER = """
import sys, threading
from e2e_runner.kit import serve_command
server = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
with serve_command(server, port=0):
    print("served", flush=True)
    threading.Event().wait()
"""
HANGS_IN_A_STEP = """
import socket, threading
from e2e_runner.kit import step
with socket.create_server(("127.0.0.1", 0)), step("wait for the order"):
    threading.Event().wait()
"""


def test_only_what_is_a_server_is_advised_to_say_so() -> None:
    with project() as made:
        port, other = free_port(), free_port()
        serves = f'exec 2>&1; "{made.python}" -m http.server --bind 127.0.0.1'
        made.write("examples/beside.py", HANGS_BESIDE_ITS_SERVER)
        made.write("examples/step.py", HANGS_IN_A_STEP)
        made.write("examples/wraps.sh", f"{serves} {port}\necho over\n")
        made.write("examples/asks.sh", f"{serves} {other} &\nsleep 1000\n")
        names = ("beside.py", "step.py", "wraps.sh", "asks.sh")
        chosen = [f"examples/{name}" for name in names]
        done = made.run("--timeout", "3s", *chosen, env=SIDE_BY_SIDE)
    advised = {
        path: [hint for hint in example["hints"] if "a server by design" in hint]
        for path, example in done.examples.items()
    }
    assert {each["status"] for each in done.examples.values()} == {"timeout"}
    assert "served" in done.examples["examples/beside.py"]["output_tail"]
    assert f'# serve = "tcp://127.0.0.1:{port}"' in advised.pop("examples/wraps.sh")[0]
    assert list(advised.values()) == [[], [], []]
