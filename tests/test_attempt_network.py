"""Attempts in networks of their own, as root and as an ordinary user, with all that belongs to them."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (
    AS_USERS,
    IS_ROOT,
    NOBODY,
    Project,
    free_port,
    ordinary_python,
    project,
    wait_gone,
    wait_until,
)
from servers import Server, psql, running_server, some_binaries

from e2e_runner import rundir
from e2e_runner.trees import MARK

DRIVER = Path(__file__).with_name("attempts_driver.py")
USERS = [
    pytest.param(None, id="self"),
    pytest.param(NOBODY, id="nobody", marks=pytest.mark.skipif(not IS_ROOT, reason="needs root")),
]

# Serves HTTP at a port in a thread, and says who it is.
SERVES = """
import http.server, os, threading, time, urllib.request
who = os.urandom(8).hex()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(who.encode())
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""
# Two that run at the same time wait for each other.
MEETS = """
import pathlib, sys
me = pathlib.Path(sys.argv[0]).stem
pathlib.Path(f"{me}.there").touch()
deadline = time.monotonic() + 30
while len(list(pathlib.Path().glob("*.there"))) < MANY:
    assert time.monotonic() < deadline, "nobody came"
    time.sleep(0.01)
"""
ANSWERS = """
import socket, sys
def ask(host, port):
    with socket.create_connection((host, port), timeout=10) as sock:
        return sock.makefile().readline()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of the attempts of one driver."""

    tier: str
    results: dict[str, dict[str, Any]]
    warnings: list[str]

    @property
    def statuses(self) -> dict[str, str]:
        return {path: result["status"] for path, result in self.results.items()}

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.results[name]


def start(place: Project, *, prefix: Sequence[str] = (), **flags: Any) -> "subprocess.Popen[str]":
    """Start the driver, in development mode, so that it complains of what it leaves open."""
    runner = sys.executable if place.user is None else str(ordinary_python())
    who: dict[str, Any] = (
        {} if place.user is None else {"user": place.user, "group": place.user, "extra_groups": []}
    )
    return subprocess.Popen(
        [
            *(*prefix, runner, "-X", "dev", "-W", "error", str(DRIVER)),
            json.dumps(flags),
        ],
        cwd=place.root,
        env=place.environment({**AS_USERS, "HOME": str(place.root)}),  # which it may read
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **who,
    )


def attempt(place: Project, *, prefix: Sequence[str] = (), **flags: Any) -> Made:
    """Make an attempt at each script of a project, all at the same time."""
    with start(place, prefix=prefix, **flags) as process:
        try:
            stdout, stderr = process.communicate(timeout=100)
        finally:
            process.kill()
    assert (process.returncode, _complaints(stderr)) == (0, []), stderr
    first, *told, last = map(json.loads, stdout.splitlines())
    results = {each["result"]["path"]: each["result"] for each in told}
    return Made(tier=first["tier"], results=results, warnings=last["warnings"])


def _complaints(stderr: str) -> list[str]:
    # Of slow callbacks, which a busy machine has.
    return [line for line in stderr.splitlines() if not line.startswith("Executing ")]


def metadata(*lines: str) -> str:
    return "".join(f"# {line}\n" for line in ("/// script", "[tool.e2e-run]", *lines, "///"))


@contextlib.contextmanager
def service(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[int]:
    """Serve a line to whoever connects, on the network of the machine; gives the port."""
    with socket.create_server((host, 0), family=family) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.sendall(b"the machine\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(params=USERS)
def place(request: pytest.FixtureRequest) -> Iterator[Project]:
    if request.param is not None and ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with project(user=request.param) as made:
        yield made


@pytest.fixture
def isolated(place: Project) -> Project:
    """Give a project where networks of one's own can be had."""
    if _tier_of(place.user) == "host":
        if os.environ.get("CI"):
            pytest.fail("no network namespaces here")
        pytest.skip("no network namespaces here")
    return place


@functools.cache
def _tier_of(user: int | None) -> str:
    with project(user=user) as made:
        made.write("examples/probe.py", "print(1)\n")
        return attempt(made).tier


# --- ports ---------------------------------------------------------------------------------------


def test_two_serve_at_the_same_port_at_once(isolated: Project) -> None:
    talks = """
for _ in range(20):
    said = urllib.request.urlopen("http://localhost:8000/").read().decode()
    assert said == who
    time.sleep(0.01)
"""
    for name in ("one", "two"):
        isolated.write(
            f"examples/{name}.py",
            metadata("ports = [8000]") + SERVES + MEETS.replace("MANY", "2") + talks,
        )
    made = attempt(isolated)
    usual = "namespace" if isolated.user is None and IS_ROOT else "user-namespace"
    assert made.tier == usual
    assert made.statuses == {"examples/one.py": "passed", "examples/two.py": "passed"}
    for result in made.results.values():
        assert result["network"] == "isolated"
        assert result["listened"] == [8000]
        assert result["leaks"] == []
    assert made.warnings == []


def test_servers_and_companions_share_the_network_of_their_example(isolated: Project) -> None:
    serve = 'serve = "http://localhost:8000/"'
    isolated.write("examples/_server.py", metadata(serve) + SERVES + "threading.Event().wait()\n")
    for name in ("one", "two"):
        isolated.write(
            f"examples/{name}.py",
            metadata('needs = ["_server.py"]')
            + "import os, time, urllib.request\n"
            + MEETS.replace("MANY", "2")
            + "from urllib.parse import urlsplit\n"
            "said = urllib.request.urlopen('http://127.0.0.1:8000/').read().decode()\n"
            "mine = os.stat('/proc/self/ns/net').st_ino\n"
            "print(mine, 'server', said)\n"
            "pathlib.Path(f'{me}.said').write_text(f'{mine} {said}')\n",
        )
    isolated.write("examples/server.py", metadata(serve) + SERVES + "threading.Event().wait()\n")
    isolated.write(
        "examples/tcp.py",
        metadata('serve = "tcp://127.0.0.1:8000"') + SERVES + "threading.Event().wait()\n",
    )
    made = attempt(isolated)
    assert made.statuses == {
        "examples/one.py": "passed",
        "examples/two.py": "passed",
        "examples/server.py": "served",
        "examples/tcp.py": "served",
    }
    said = [
        (isolated.root / f"examples/{name}.said").read_text().split() for name in ("one", "two")
    ]
    assert len({network for network, _ in said}) == 2
    assert len({server for _, server in said}) == 2
    assert all(result["listened"] == [8000] for result in made.results.values())


def test_a_server_left_behind_is_named_with_its_port(isolated: Project) -> None:
    isolated.write(
        "examples/leaves.py",
        "import subprocess, sys\n"
        "code = \"import socket, signal; s = socket.create_server(('127.0.0.1', 8123)); "
        "print('ready', flush=True); signal.pause()\"\n"
        "server = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,"
        " start_new_session=True)\n"
        "assert server.stdout.readline() == b'ready\\n'\n"
        "print(server.pid)\n",
    )
    result = attempt(isolated)["examples/leaves.py"]
    assert result["status"] == "leaked"
    process, port = result["leaks"]
    assert process["ports"] == [8123]
    assert port["port"] == 8123
    assert f"pid {process['pid']} (" in port["owner"]
    assert not isolated.survivors()


# --- services of the machine ---------------------------------------------------------------------


def test_what_is_declared_is_reached_and_nothing_else(isolated: Project) -> None:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, 1, socket.AF_INET)
    except OSError:
        pytest.skip(f"{name}, the name of this machine, does not resolve")
    with service("0.0.0.0") as port, service("127.0.0.7") as other:  # noqa: S104 - for its own name
        reach = [f"localhost:{port}", f"{name}:{port}", f"127.0.0.7:{other}", f"10.9.8.7:{other}"]
        isolated.write(
            "examples/reaches.py",
            metadata(f"reach = {json.dumps(reach)}")
            + ANSWERS
            + f"name, port, other = {name!r}, {port}, {other}\n"
            "assert ask('localhost', port) == 'the machine\\n'\n"
            "assert ask('127.0.0.1', port) == 'the machine\\n'\n"
            "assert ask('::1', port) == 'the machine\\n'\n"
            "assert ask('127.0.0.7', other) == 'the machine\\n'\n"
            "assert socket.gethostbyname(name) == '127.1.0.1'\n"
            "assert ask(name, port) == 'the machine\\n'\n",
        )
        isolated.write(
            "examples/no.py",
            f"import socket\nassert socket.gethostbyname({name!r}) != '127.1.0.1'\n"
            f"print(socket.socket().connect_ex(('127.0.0.1', int('{port}'))))\n"
            f"assert socket.socket().connect_ex(('127.0.0.1', int('{port}')))\n",
        )
        hosts = Path("/etc/hosts").read_text()
        made = attempt(isolated)
        assert Path("/etc/hosts").read_text() == hosts
    assert set(made.statuses.values()) == {"passed"}, made.results
    assert made["examples/reaches.py"]["listened"] == []


def test_a_service_that_is_not_there_is_told_of(isolated: Project) -> None:
    with service() as port:
        pass
    isolated.write(
        "examples/asks.py",
        metadata(f'reach = ["localhost:{port}"]') + ANSWERS + f"ask('localhost', {port})\n",
    )
    result = attempt(isolated)["examples/asks.py"]
    assert result["status"] == "failed"
    assert f"reach localhost:{port}: Connection refused" in result["notes"]
    assert result["hints"][0].startswith(
        f"A service that it may reach did not answer this machine (localhost:{port}: "
    )
    assert result["isolation_suspect"] == ""


def test_what_may_be_the_doing_of_the_isolation(isolated: Project) -> None:
    with service() as port:
        isolated.write(
            "examples/dns.py", "import socket\nsocket.create_connection(('db.test', 1))\n"
        )
        isolated.write("examples/far.py", ANSWERS + "ask('10.1.2.3', 80)\n")
        isolated.write(
            "examples/quiet.py",
            ANSWERS + "try:\n    ask('10.1.2.3', 80)\nexcept OSError:\n    sys.exit(1)\n",
        )
        isolated.write("examples/redis.py", ANSWERS + f"ask('localhost', {port})\n")
        isolated.write(
            "examples/hides.py",
            ANSWERS
            + f"URL = 'http://localhost:{port}'\n"
            + f"try:\n    ask('localhost', {port})\nexcept OSError:\n    sys.exit('no')\n",
        )
        isolated.write(
            "examples/_needs.py",
            metadata("timeout = '1s'", "ports = [9000]")
            + ANSWERS
            + f"URL = 'http://localhost:{port}'\n"
            f"ask('localhost', {port})\n",
        )
        isolated.write("examples/by_companion.py", metadata('needs = ["_needs.py"]') + "print(1)\n")
        isolated.write("examples/plain.py", "assert 1 == 2\n")
        isolated.write(
            "examples/polls.py",
            metadata("ports = [8000]")
            + "import urllib.request, contextlib\nwith contextlib.suppress(OSError):\n"
            "    urllib.request.urlopen('http://localhost:8000/')\n"
            "print('ready')\nassert 1 == 2\n",
        )
        isolated.write(
            "examples/passes.py",
            ANSWERS + "try:\n    ask('10.1.2.3', 80)\nexcept OSError:\n    pass\n",
        )
        made = attempt(isolated)
    service_of = (
        f'localhost:{port} is a service of the machine: declare reach = ["localhost:{port}"]'
    )
    suspects = {
        Path(path).stem: result["isolation_suspect"] for path, result in made.results.items()
    }
    assert suspects == {
        "dns": "no DNS in its network",
        "far": "no route beyond its network",
        "quiet": "no route beyond its network",
        "redis": service_of,
        "hides": service_of,
        "by_companion": service_of,
        "plain": "",
        "polls": "",
        "passes": "",
    }
    assert made.statuses["examples/by_companion.py"] == "blocked"
    assert {result["network"] for result in made.results.values()} == {"isolated"}
    assert made.statuses["examples/passes.py"] == "passed"
    assert made.results["examples/passes.py"]["notes"] == [
        "it may have left something out: no route beyond its network"
    ]


def test_a_neighbour_of_the_same_run_is_no_service_of_the_machine(isolated: Project) -> None:
    port = free_port()
    isolated.write(
        "examples/neighbour.py",
        metadata('network = "host"')
        + "import pathlib, socket, time\n"
        + f"server = socket.create_server(('127.0.0.1', {port}))\n"
        "pathlib.Path('there').touch()\n"
        "deadline = time.monotonic() + 30\n"
        "while not pathlib.Path('over').exists():\n"
        "    assert time.monotonic() < deadline, 'nobody asked'\n"
        "    time.sleep(0.01)\n",
    )
    isolated.write(
        "examples/asks.py",
        ANSWERS + "import pathlib, time\n"
        "deadline = time.monotonic() + 30\n"
        "while not pathlib.Path('there').exists():\n"
        "    assert time.monotonic() < deadline, 'nobody came'\n"
        "    time.sleep(0.01)\n"
        f"URL = 'http://localhost:{port}'\n"
        f"try:\n    ask('localhost', {port})\nexcept OSError:\n    sys.exit('no')\n",
    )
    results = {}
    with start(isolated) as process:
        try:
            assert process.stdout is not None
            for told in map(json.loads, process.stdout):
                if result := told.get("result"):
                    results[result["path"]] = result
                    (isolated.root / "examples/over").touch()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert results["examples/neighbour.py"]["status"] == "passed", results
    asks = results["examples/asks.py"]
    assert (asks["status"], asks["isolation_suspect"]) == ("failed", ""), asks


# --- where there are none ------------------------------------------------------------------------


def limited(count: int, kind: str = "net") -> list[str]:
    """Give a command that runs another where so many namespaces of a kind can be made."""
    allow = f'echo {count} > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", allow, "sh"]


def test_without_networks_only_what_insists_is_blocked(isolated: Project) -> None:
    isolated.write("examples/insists.py", metadata('network = "isolated"') + "print(1)\n")
    isolated.write("examples/takes.py", "print(1)\n")
    made = attempt(isolated, prefix=limited(0))
    assert made.tier == "host"
    assert made.statuses == {"examples/insists.py": "blocked", "examples/takes.py": "passed"}
    blocked = made["examples/insists.py"]
    assert blocked["cause"] == "network"
    assert blocked["reason"].startswith("it cannot have a network of its own: ")
    assert "max_net_namespaces" in blocked["reason"]
    assert any('network = "auto"' in hint for hint in blocked["hints"])
    assert blocked["isolation_suspect"] == ""
    assert made["examples/takes.py"]["network"] == "host"


def test_when_networks_run_out_the_rest_is_for_the_host(isolated: Project) -> None:
    many = 10
    for number in range(many):
        isolated.write(
            f"examples/e{number}.py", "import time\n" + MEETS.replace("MANY", "2") + "print(1)\n"
        )
    made = attempt(isolated, prefix=limited(5))
    blocked = [each for each in made.results.values() if each["status"] == "blocked"]
    passed = [each for each in made.results.values() if each["status"] == "passed"]
    assert len(blocked) + len(passed) == many
    assert passed
    assert blocked
    for each in blocked:
        assert each["cause"] == "network"
        assert each["network"] is None
        assert each["isolation_suspect"].startswith("it cannot have a network of its own: ")
    assert len(made.warnings) == 1
    assert made.warnings[0].startswith("an example that would run in a network of its own cannot: ")


def test_where_names_cannot_lead_anywhere_it_is_blocked(isolated: Project) -> None:
    reach = 'reach = ["db.test:5432"]'
    isolated.write("examples/insists.py", metadata(reach, 'network = "isolated"') + "print(1)\n")
    isolated.write("examples/may.py", metadata(reach) + "print(1)\n")
    isolated.write("examples/_server.py", metadata("ports = [8000]") + SERVES)
    isolated.write("examples/needs.py", metadata(reach, 'needs = ["_server.py"]') + "print(1)\n")
    made = attempt(isolated, prefix=limited(0, "mnt"))
    assert set(made.statuses.values()) == {"blocked"}, made.results
    why = "the names of its services cannot be put into its /etc/hosts: "
    for result in made.results.values():
        assert result["cause"] == "network"
        assert why in result["reason"]
        assert result["network"] is None
    suspects = {path: result["isolation_suspect"] != "" for path, result in made.results.items()}
    assert suspects == {
        "examples/insists.py": False,
        "examples/may.py": True,
        "examples/needs.py": True,
    }
    assert any('network = "auto"' in hint for hint in made["examples/insists.py"]["hints"])
    assert len([each for each in made.warnings if why in each]) == 1


def test_where_its_server_cannot_enter_its_network_it_has_none(isolated: Project) -> None:
    isolated.write("examples/may.py", ASKS + "run()\n")
    isolated.write("examples/insists.py", metadata('network = "isolated"') + ASKS + "run()\n")
    made = attempt(isolated, lose_networks=True)
    assert made.statuses == {"examples/may.py": "blocked", "examples/insists.py": "blocked"}
    for result in made.results.values():
        assert result["cause"] == "network", result
        assert result["reason"].startswith("it cannot have a network of its own: ")
    suspect = made["examples/may.py"]["isolation_suspect"]
    assert suspect == made["examples/may.py"]["reason"]
    assert made["examples/insists.py"]["isolation_suspect"] == ""


# --- databases -----------------------------------------------------------------------------------

ASKS = """
import asyncio, asyncpg, os, time
async def ask(*where, sql, **how):
    connection = await asyncpg.connect(*where, **how)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()
def run(*where, sql="SELECT system_identifier FROM pg_control_system()", **how):
    return asyncio.run(ask(*where, sql=sql, **how))
"""


def test_each_has_a_server_where_everybody_looks_for_it(isolated: Project) -> None:
    for name in ("one", "two"):
        isolated.write(
            f"examples/{name}.py",
            ASKS
            + MEETS.replace("MANY", "2")
            + """
assert os.environ["PGPORT"] == "5432"
here = run("postgresql://postgres:postgres@localhost:5432/postgres")
assert here == run(os.environ["DATABASE_URL"]) == run()
assert run(host="::1", port=5432, user="postgres", password="") == here
run(sql="CREATE ROLE app LOGIN PASSWORD 'right'")
assert run(user="app", password="right", sql="SELECT 1") == 1
try:
    run(user="app", password="wrong")
except asyncpg.InvalidPasswordError:
    pass
else:
    raise SystemExit("any password will do")
run(sql=f"CREATE DATABASE left_by_{me}")
""",
        )
    isolated.write(
        "examples/takes.py",
        metadata("ports = [5432]", "postgres = true") + ASKS + "import socket\n"
        "with socket.create_server(('127.0.0.1', 5432)):\n"
        "    assert os.environ['PGPORT'] == '5433'\n"
        "    run()\n",
    )
    isolated.write("examples/never.py", ASKS + "raise SystemExit(run())\n")
    made = attempt(isolated)
    assert made.statuses == {
        "examples/one.py": "leaked",
        "examples/two.py": "leaked",
        "examples/takes.py": "passed",
    }, made.results
    for name in ("one", "two"):
        leaks = made[f"examples/{name}.py"]["leaks"]
        assert [leak["name"] for leak in leaks] == [f"left_by_{name}"]
    assert _folders_of(isolated) == []


def _folders_of(place: Project) -> list[Path]:
    """List what the runs of a project have left where temporary folders are made."""
    runs = {run.name for run in place.root.glob(".e2e-run/runs/*")}
    found = []
    for parent in ("/dev/shm", "/tmp"):
        for mark in Path(parent).glob(f"{rundir.PREFIX}*/{MARK}"):
            with contextlib.suppress(FileNotFoundError):  # of another run, which ends
                found += [mark.parent for run in runs if run in mark.read_text()]
    return found


def test_databases_of_the_machine_are_spared_what_was_for_its_own(isolated: Project) -> None:
    for name, where in {"user": "maria:secret@localhost", "database": "postgres@localhost"}.items():
        isolated.write(f"examples/{name}.py", ASKS + f"run('postgresql://{where}:5432/shop')\n")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(service())
        isolated.write(
            "examples/passes.py",
            metadata(f"env = {{ REDIS_URL = 'redis://localhost:{port}' }}", "postgres = true")
            + ANSWERS
            + f"try:\n    ask('localhost', {port})\nexcept OSError:\n    pass\n",
        )
        with contextlib.suppress(OSError):  # taken: then it is served already
            stack.enter_context(socket.create_server(("127.0.0.1", 5432)))
        made = attempt(isolated)
    assert made.statuses == {
        "examples/user.py": "failed",
        "examples/database.py": "failed",
        "examples/passes.py": "passed",
    }
    spared = "not tried on the network of the machine, which has a PostgreSQL server of its own at port 5432"
    for path, result in made.results.items():
        assert result["isolation_suspect"] == "", result
        assert result["notes"][-1].endswith(spared), path
        failed = result["status"] == "failed"
        assert ("If it failed by its isolation" in "".join(result["hints"])) is failed


def test_its_port_may_be_told_of_in_other_words(isolated: Project) -> None:
    config = isolated.root / "e2e-run.toml"
    config.write_text(config.read_text() + '[postgres.env]\nPGPORT = "at {port}"\n')
    isolated.write(
        "examples/fails.py",
        metadata("postgres = true") + "import os\nassert os.environ['PGPORT'] == 'at 5432'\n"
        "import socket\nsocket.create_server(('127.0.0.1', 5432))\n",
    )
    result = attempt(isolated)["examples/fails.py"]
    assert (result["status"], result["cause"]) == ("failed", "port-in-use"), result
    assert (
        "In its network PostgreSQL is given to it at port 5432: to have that itself, "
        "it declares ports = [5432]."
    ) in result["hints"]


def test_databases_are_filled_before_they_are_taken_inside(isolated: Project) -> None:
    isolated.write(
        "schema.sql", "CREATE TABLE planets (name text); INSERT INTO planets VALUES ('Mars');"
    )
    config = isolated.root / "e2e-run.toml"
    config.write_text(config.read_text() + '[databases.orm]\ntemplate = "schema.sql"\nenv = "DB"\n')
    isolated.write(
        "examples/reads.py",
        ASKS + "assert run(database=os.environ['DB'], sql='SELECT name FROM planets') == 'Mars'\n",
    )
    assert attempt(isolated).statuses == {"examples/reads.py": "passed"}


def test_what_was_made_for_a_blocked_attempt_is_given_back_at_once(place: Project) -> None:
    place.write("examples/a_first.py", ASKS + "run()\n")
    place.write(
        "examples/c_last.py",
        ASKS
        + """
import pathlib
data = pathlib.Path(run(sql="SELECT current_setting('data_directory')"))
own = data / "postmaster.pid"
deadline = time.monotonic() + 20
while (there := list(data.parent.parent.glob("*/data/postmaster.pid"))) != [own]:
    assert time.monotonic() < deadline, there
    time.sleep(0.01)
""",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place.write("examples/b_blocked.py", metadata(f"ports = [{port}]") + ASKS + "run()\n")
        done = place.run(env={"HOME": str(place.root)})
    assert done.statuses == {
        "examples/a_first.py": "passed",
        "examples/b_blocked.py": "blocked",
        "examples/c_last.py": "passed",
    }, done.stdout


@pytest.mark.parametrize("scope", ["example", "run"])
def test_what_is_kept_of_a_failure_can_be_looked_at_from_the_host(
    isolated: Project, scope: str
) -> None:
    config = isolated.root / "e2e-run.toml"
    config.write_text(config.read_text() + f'[postgres]\nscope = "{scope}"\n')
    isolated.write(
        "examples/fails.py",
        ASKS
        + """
run(sql="CREATE TABLE evidence AS SELECT 'from inside' AS what")
raise SystemExit(os.environ["PGDATABASE"])
""",
    )
    result = attempt(isolated, keep_databases=True)["examples/fails.py"]
    [note] = [note for note in result["notes"] if "e2e-run postgres" in note]
    folder = note.rpartition("e2e-run postgres ")[2]
    database = result["output_tail"].strip()
    home = {"HOME": str(isolated.root)}
    with isolated.start("postgres", folder, env=home) as serving:
        try:
            assert serving.stdout is not None
            url = next(
                word
                for line in serving.stdout
                for word in line.split()
                if word.startswith("postgresql://")
            )
            where = url.rpartition("/")[0] + f"/{database}"
            answer = psql(some_binaries(), "SELECT what FROM evidence", where=[where])
            assert answer == ["from inside"]
        finally:
            serving.send_signal(signal.SIGINT)
            serving.communicate(timeout=60)


def test_one_server_for_the_run_is_led_to(isolated: Project) -> None:
    many = 8 if isolated.user is None else 2
    config = isolated.root / "e2e-run.toml"
    config.write_text(config.read_text() + '[postgres]\nscope = "run"\n')
    for number in range(many):
        isolated.write(
            f"examples/e{number}.py",
            ASKS
            + MEETS.replace("MANY", str(many))
            + """
assert os.environ["PGPORT"] != "5432"
assert run() == run(port=5432, host="localhost")
run(sql=f"CREATE DATABASE left_by_{me}")
""",
        )
    made = attempt(isolated)
    for number in range(many):
        result = made[f"examples/e{number}.py"]
        assert result["status"] == "leaked", result
        assert [leak["name"] for leak in result["leaks"]] == [f"left_by_e{number}"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(some_binaries()) as running:
        running.sql("CREATE ROLE maker LOGIN CREATEDB")
        yield running


def test_a_server_on_a_unix_socket_is_none_of_its_own(isolated: Project, server: Server) -> None:
    """So what it fails of is tried on the machine, whoever listens at that port there."""
    isolated.write("examples/far.py", ASKS + "run(host='10.1.2.3', port=5432)\n")
    url = f"postgresql://postgres@/postgres?host={server.sockets}&port={server.port}"
    result = attempt(isolated, postgres=url)["examples/far.py"]
    assert result["status"] == "failed", result
    assert result["isolation_suspect"] == "no route beyond its network", result


@pytest.mark.parametrize("user", ["postgres", "maker"])
def test_attempts_share_a_configured_server_at_once(
    isolated: Project, server: Server, user: str
) -> None:
    """The maker may make no roles: then one attempt has its turn after the other."""
    many = 8 if isolated.user is None else 2
    before = server.databases(), server.roles()
    meets = MEETS.replace("MANY", str(many)) if user == "postgres" else "me = __file__[-5:-3]\n"
    for number in range(many):
        isolated.write(
            f"examples/e{number}.py",
            ASKS + meets + "time.sleep(0.05)\nrun(sql=f'CREATE DATABASE test_left_by_{me}')\n",
        )
    made = attempt(isolated, postgres=server.url(user=user))
    for number in range(many):
        result = made[f"examples/e{number}.py"]
        assert result["status"] == "leaked", result
        assert [leak["name"] for leak in result["leaks"]] == [f"test_left_by_e{number}"]
    left = {f"test_left_by_e{number}" for number in range(many)}
    for name in server.databases() & left:
        server.sql(f"DROP DATABASE {name}")
        assert user == "maker"  # whose databases may be another run's, and are left to the sweep
    assert (server.databases(), server.roles()) == before


# --- an end by force -----------------------------------------------------------------------------


def test_a_killed_runner_leaves_nothing(isolated: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        isolated.write(
            "examples/stays.py",
            metadata(f'reach = ["localhost:{port}", "{socket.gethostname()}:{port}"]')
            + ASKS
            + f"import pathlib, socket, threading\nrun()\nsock = socket.create_connection(('localhost', {port}))\n"
            "sock.sendall(b'here')\n"
            "pathlib.Path('there').write_text(f\"{os.stat('/proc/self/ns/net').st_ino}\\n\")\n"
            "threading.Event().wait()\n",
        )
        with start(isolated) as process:
            there = isolated.root / "examples/there"
            wait_until(lambda: there.exists() and there.read_text().endswith("\n"), "it was there")
            offspring = psutil.Process(process.pid).children(recursive=True)
            assert "postgres" in {each.name() for each in offspring}
            network = int(there.read_text())
            relayed, _ = listener.accept()
            with relayed:
                relayed.settimeout(20)
                assert relayed.recv(4) == b"here"
                os.kill(process.pid, signal.SIGKILL)
                with contextlib.suppress(ConnectionResetError):
                    assert relayed.recv(1) == b""
            wait_gone(offspring)
        wait_until(lambda: network not in _networks(), "the network was gone")
        wait_until(lambda: not _folders_of(isolated), "its folders were gone")
    assert not isolated.survivors()


def _networks() -> set[int]:
    found = set()
    for each in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            found.add(each.stat().st_ino)
    return found
