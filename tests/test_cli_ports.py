import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from harness import free_port

from e2e_runner.cli.ports_ import PortUse, document, ports_command, render
from e2e_runner.errors import NothingSelected
from e2e_runner.model import PortOwner, ProcessInfo

SERVER = ProcessInfo(pid=4242, command="python server.py", started=1000.0, user="maria")
TAKEN = PortUse(
    port=8000,
    taken=True,
    owners=(PortOwner(port=8000, addresses=("127.0.0.1",), process=SERVER, earlier_run="r1"),),
    used_by=("examples/example_orders.py", "examples/example_users.py"),
)
FREE = PortUse(port=8001, taken=False, owners=(), used_by=("examples/example_users.py",))
HIDDEN = PortUse(
    port=5432,
    taken=True,
    owners=(
        PortOwner(
            port=5432,
            addresses=("::",),
            process=None,
            uid=113,
            note="its process is not visible to you: it belongs to user postgres (uid 113)",
        ),
    ),
    used_by=(),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("E2E_RUN"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def _example(project: Path, name: str, port: int) -> None:
    folder = project / "examples"
    folder.mkdir(exist_ok=True)
    text = f"# /// script\n# [tool.e2e-run]\n# ports = [{port}]\n# ///\nprint('x')\n"
    (folder / name).write_text(text)


def _ports(*args: str) -> Result:
    return CliRunner().invoke(ports_command, args)


def test_the_table_fits_80_columns() -> None:
    assert render([TAKEN, FREE, HIDDEN], now=8200.0, width=80) == (
        "PORT  STATE  PID   USER   AGE    COMMAND           USED BY\n"
        "8000  taken  4242  maria  2h00m  python server.py  examples/examp…ample_users.py\n"
        "       left by an earlier run (r1)\n"
        "8001  free                                         examples/example_users.py\n"
        "5432  taken  ?                   ?\n"
        "       its process is not visible to you: it belongs to user postgres (uid 113)"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_it_may_be(width: int) -> None:
    longest = max(map(len, render([TAKEN, FREE, HIDDEN], now=8200.0, width=width).split("\n")))
    assert longest <= max(width, 60)


def test_a_command_is_never_interpreted() -> None:
    process = ProcessInfo(pid=1, command="a\x1b[2J\nb", started=0.0, user="x\ty")
    owner = PortOwner(port=1, addresses=("::",), process=process)
    text = render([PortUse(port=1, taken=True, owners=(owner,), used_by=())], now=1.0, width=80)
    assert text.split("\n")[1:] == [r"1     taken  1    x\ty  1s   a\x1b[2J\nb"]


def test_the_document() -> None:
    assert document([TAKEN, FREE])["ports"] == [
        {
            "port": 8000,
            "state": "taken",
            "owners": [
                {
                    "pid": 4242,
                    "command": "python server.py",
                    "user": "maria",
                    "started": "1970-01-01T00:16:40+00:00",
                    "uid": None,
                    "addresses": ["127.0.0.1"],
                    "earlier_run": "r1",
                    "note": "",
                }
            ],
            "used_by": ["examples/example_orders.py", "examples/example_users.py"],
        },
        {
            "port": 8001,
            "state": "free",
            "owners": [],
            "used_by": ["examples/example_users.py"],
        },
    ]


def test_the_ports_of_the_examples(project: Path, server: socket.socket) -> None:
    port, free = server.getsockname()[1], free_port()
    _example(project, "a.py", port)
    _example(project, "b.py", free)

    result = _ports("--json")

    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["schema"] == "e2e-run-ports/1"
    by_port = {use["port"]: use for use in found["ports"]}
    assert list(by_port) == sorted([port, free])
    assert by_port[port]["state"] == "taken"
    assert by_port[port]["used_by"] == ["examples/a.py"]
    assert [owner["pid"] for owner in by_port[port]["owners"]] == [os.getpid()]
    assert (by_port[free]["state"], by_port[free]["owners"]) == ("free", [])


def test_named_ports_are_shown_in_the_order_given(project: Path, server: socket.socket) -> None:
    port, free = server.getsockname()[1], free_port()
    _example(project, "a.py", port)
    result = _ports(str(free), str(port))
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["PORT", "STATE"],
        [str(free), "free"],
        [str(port), "taken"],
    ]
    assert result.stdout.splitlines()[2].endswith("examples/a.py")


@pytest.mark.usefixtures("project")
def test_named_ports_need_no_examples(server: socket.socket) -> None:
    result = _ports(str(server.getsockname()[1]))
    assert result.exit_code == 0
    assert " taken " in result.stdout


@pytest.mark.usefixtures("project")
def test_without_ports_and_examples_there_is_nothing_to_look_at() -> None:
    result = _ports()
    assert isinstance(result.exception, NothingSelected)


def test_examples_without_ports(project: Path) -> None:
    (project / "examples").mkdir()
    (project / "examples" / "a.py").write_text("print(1)\n")
    result = _ports()
    assert result.exit_code == 0
    assert result.stdout.startswith("The examples declare no ports, ")
    assert json.loads(_ports("--json").stdout)["ports"] == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_a_usage_error(port: str) -> None:
    result = _ports(port)
    assert result.exit_code == 2
    assert "PORT" in result.stderr


def test_what_an_earlier_run_left_is_told(project: Path) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    env = {
        **os.environ,
        "E2E_RUN": "1",
        "E2E_RUN_ID": "20260101-000000-abcd",
        "E2E_RUN_PROJECT": str(project),
    }
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        _example(project, "a.py", int(port))
        result = _ports()
        process.communicate("\n")
    assert "left by an earlier run (20260101-000000-abcd)" in result.stdout
