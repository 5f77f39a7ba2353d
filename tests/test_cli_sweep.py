"""``e2e-run sweep-dbs`` as people and jobs call it."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from harness import wait_until
from pgbouncer import running_pgbouncer
from servers import BUILT_IN, create, remove

from e2e_runner.dbnames import KEPT, attempt_name
from e2e_runner.model import DatabaseFacts
from e2e_runner.report.sink import Sink
from e2e_runner.report.style import paint
from e2e_runner.report.sweep import SweepConsole, document, listing, safe_name
from e2e_runner.report.sweep import SweptServer as Server
from e2e_runner.sweep_plan import (
    Candidate,
    Dropping,
    Spared,
    SweepKind,
    SweepOutcome,
    SweepPlan,
    Swept,
)

DEAD = "20261121_094345_0a1b2c"


@pytest.fixture(scope="module")
def shared() -> Iterator[servers.Server]:
    with servers.running_server(servers.some_binaries()) as running:
        yield running


@pytest.fixture
def server(shared: servers.Server) -> Iterator[servers.Server]:
    """Give the server of this module, with nothing on it from the test before."""
    yield shared
    assert servers.dropped_beyond(shared, BUILT_IN) == []


def environment(**more: str) -> dict[str, str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("E2E_RUN", "PG", "DATABASE_URL"))
    }
    # In the development mode asyncio tells on stderr what was slow, as everything is on a busy machine.
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONDEVMODE"):
        env.pop(name, None)
    return env | more


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "e2e_runner", "sweep-dbs", *args]


def sweep(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# --- what it says --------------------------------------------------------------------------------


def facts(name: str, owner: str = "maria", **more: Any) -> DatabaseFacts:
    return DatabaseFacts(oid=1, name=name, owner=owner, **{"size": 7_507_471, "age": 75.0, **more})


def shown(plan: SweepPlan) -> str:
    return "\n".join(paint(line, color=False) for line in listing(plan, width=80))


def test_the_list_fits_80_columns() -> None:
    name = attempt_name(DEAD, 3)
    plan = SweepPlan(
        candidates=(
            Candidate(database=facts(name, name), why="its run is over"),
            Candidate(database=facts(f"{name}_ohlcv", size=None), why="its run is over"),
            Candidate(database=facts("x" * 63, age=300000.0), why="matches xxxx"),
        ),
        spared=(Spared(database=facts("a\nb", age=None), why="it is protected"),),
        roles=(name,),
    )
    assert shown(plan).splitlines() == [
        "3 databases to drop, 14.3 MiB or more",
        "  DATABASE                                      OWNER                SIZE    AGE",
        "Its run is over",
        "  test_e2e_20261121_094345_0a1b2c_r3            test_e2…a1b2c_r3  7.2 MiB  1m15s",
        "  test_e2e_20261121_094345_0a1b2c_r3_ohlcv      maria                   ?  1m15s",
        "Matches xxxx",
        f"  {'x' * 63}",
        "                                                maria             7.2 MiB     3d",
        "",
        "1 role to drop",
        "Their runs are over, and they own no database any more",
        "  test_e2e_20261121_094345_0a1b2c_r3",
        "",
        "1 database stays",
        "  DATABASE                                      OWNER                SIZE    AGE",
        "It is protected",
        '  "a\\nb"                                        maria             7.2 MiB      ?',
    ]


def test_what_failed_among_many_is_said_again() -> None:
    stream = io.StringIO()
    candidates = tuple(Candidate(database=facts(f"d{n}"), why="") for n in range(30))
    console = SweepConsole(
        Sink(stream),
        SweepPlan(candidates=candidates),
        width=80,
        color=False,
        live=False,
        environ={},
        clock=lambda: 5.0,
    )
    for number in range(30):
        outcome = SweepOutcome.DROPPED if number else SweepOutcome.FAILED
        reason = "" if number else "not allowed: because"
        name = f"d{number}"
        console.handle(Dropping(kind=SweepKind.DATABASE, name=name))
        console.handle(
            Swept(kind=SweepKind.DATABASE, name=name, outcome=outcome, reason=reason, seconds=0.5)
        )
    console.close()
    failed = ["✗ failed   d0  500ms", "           not allowed: because"]
    lines = stream.getvalue().splitlines()
    assert lines[:4] == ["", *failed, "✓ dropped  d1  500ms"]
    assert lines[-5:] == [
        *("Not dropped", *failed, ""),
        "29 databases dropped, 1 database not dropped in 0ms",
    ]


def test_nothing_to_drop() -> None:
    assert shown(SweepPlan()) == "Nothing to drop"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_shop", "test_shop"),
        ("größe ☃", "größe ☃"),
        ("a\nb", '"a\\nb"'),
        ("a\x1b[31mb", '"a\\x1b[31mb"'),
        ("a\u202etxt", '"a\\u202etxt"'),
        ("caf\udce9", '"caf\\udce9"'),
        ('a"b', '"a\\"b"'),
        ("a ", '"a "'),
        ("", '""'),
    ],
)
def test_names_that_could_be_misread_are_quoted(name: str, expected: str) -> None:
    assert safe_name(name) == expected


def test_the_document_holds_any_name() -> None:
    plan = SweepPlan(candidates=(Candidate(database=facts("caf\udce9\n"), why="matches caf*"),))
    text = document(
        Server(name="a", version="15", source="s"),
        plan,
        (),
        dry_run=True,
        interrupted=False,
        exit_code=1,
    )
    assert text.isascii()
    assert json.loads(text)["databases"][0]["name"] == "caf\udce9\n"


# --- what it does --------------------------------------------------------------------------------


def test_a_dry_run_drops_nothing_and_tells_that_something_is_left(
    server: servers.Server, tmp_path: Path
) -> None:
    create(server, attempt_name(DEAD, 1), "shop")
    done = sweep(tmp_path, "--dry-run", "--postgres", server.url())
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        rf"postgres@127\.0\.0\.1:{server.port}, PostgreSQL [\d.]+ \(from --postgres\)", lines[0]
    )
    assert lines[1] == ""
    assert re.fullmatch(r"1 database to drop, \d\.\d MiB", lines[2])
    assert lines[4] == "Its run is over"
    assert lines[5].split()[:2] == [attempt_name(DEAD, 1), "postgres"]
    assert len(lines) == 6
    assert server.databases() == BUILT_IN | {attempt_name(DEAD, 1), "shop"}
    remove(server, attempt_name(DEAD, 1), "shop")


def test_without_a_terminal_it_needs_yes(server: servers.Server, tmp_path: Path) -> None:
    create(server, "test_a", "shop")
    refused = sweep(tmp_path, "--pattern", "test_", E2E_RUN_POSTGRES=server.url())
    assert refused.returncode == 2
    assert refused.stderr == (
        "e2e-run: There is no terminal to ask on: nothing is dropped\n"
        "To fix this: look at the list, then give --yes; --dry-run only lists\n"
    )
    assert "test_a" in refused.stdout
    document = sweep(tmp_path, "--json", "--pattern", "test_", E2E_RUN_POSTGRES=server.url())
    assert document.returncode == 2
    assert json.loads(document.stdout)["databases"][0]["outcome"] is None
    assert "test_a" in server.databases()
    done = sweep(tmp_path, "--yes", "--pattern", "test_", E2E_RUN_POSTGRES=server.url())
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        r"^✓ dropped  test_a  \d+ms\n\n1 database dropped in ", done.stdout, re.MULTILINE
    )
    assert server.databases() == BUILT_IN | {"shop"}
    again = sweep(tmp_path, "--pattern", "test_", E2E_RUN_POSTGRES=server.url())
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "Nothing to drop")
    remove(server, "shop")


def test_the_document(server: servers.Server, tmp_path: Path) -> None:
    (tmp_path / "e2e-run.toml").write_text(
        '[postgres]\npatterns = ["test_*"]\nprotect = ["test_keep"]\n'
    )
    create(server, "test_a", "test_keep", "shop")
    done = sweep(tmp_path, "--json", "--yes", DATABASE_URL=server.url(database="shop"))
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["schema"] == "e2e-run-sweep/1"
    assert said["server"]["address"] == f"postgres@127.0.0.1:{server.port}"
    assert said["server"]["source"] == "DATABASE_URL"
    (dropped,) = said["databases"]
    assert dropped["size"] > 1_000_000
    assert 0 < dropped["seconds"] < 60
    assert 0 <= dropped["age"] < 60
    for each in (dropped, *said["spared"]):
        del each["size"], each["age"]
    del dropped["seconds"]
    common = {"owner": "postgres", "sessions": 0}
    assert dropped == {
        **common,
        "name": "test_a",
        "why": "matches test_*",
        "outcome": "dropped",
        "reason": "",
    }
    assert said["spared"] == [{**common, "name": "test_keep", "why": "it is protected"}]
    assert (said["dry_run"], said["interrupted"], said["exit_code"]) == (False, False, 0)
    assert (said["refusal"], said["roles"]) == ("", [])
    remove(server, "test_keep", "shop")


def test_what_could_not_be_dropped(server: servers.Server, tmp_path: Path) -> None:
    server.sql("CREATE ROLE plain LOGIN")
    create(server, "test_a", "shop")
    done = sweep(tmp_path, "--yes", "--pattern", "test_", "--postgres", server.url(user="plain"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-4].startswith("✗ failed   test_a  ")
    assert done.stdout.splitlines()[-3] == (
        "           not allowed: must be owner of database test_a"
    )
    assert done.stdout.splitlines()[-1].startswith("1 database not dropped in ")
    server.sql("DROP ROLE plain")
    remove(server, "test_a", "shop")


def test_a_pattern_that_matches_too_much(server: servers.Server, tmp_path: Path) -> None:
    create(server, "test_a", "test_b", "shop")
    done = sweep(tmp_path, "--yes", "--limit=1", "--pattern=test_", "--postgres", server.url())
    assert done.returncode == 2
    assert done.stderr.startswith(
        "e2e-run: The pattern test_ matches 2 databases, and the limit is 1: nothing is dropped\n"
        "To fix this: name a narrower pattern, or say that so many may go: --limit 2; "
    )
    assert server.databases() == BUILT_IN | {"test_a", "test_b", "shop"}
    remove(server, "test_a", "test_b", "shop")


@pytest.mark.parametrize(
    "args",
    [
        ("--pattern", "*"),
        ("--pattern", "abc"),
        ("--older-than", "soon"),
        ("--limit", "0"),
        ("--postgres", "off"),
        ("--postgres", "mysql://x"),
        ("--postgres", "env"),
        (),  # no server is named
        ("what",),
    ],
)
def test_wrong_usage(tmp_path: Path, args: tuple[str, ...]) -> None:
    done = sweep(tmp_path, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["off", "embedded"])
def test_what_is_set_to_no_server_does_not_fall_through_to_the_applications(
    server: servers.Server, tmp_path: Path, mode: str
) -> None:
    create(server, attempt_name(DEAD, 1))
    application = server.url()
    done = [sweep(tmp_path, "--yes", E2E_RUN_POSTGRES=mode, DATABASE_URL=application)]
    (tmp_path / "e2e-run.toml").write_text(f'[postgres]\nurl = "{mode}"\n')
    done.append(sweep(tmp_path, "--yes", DATABASE_URL=application))
    for each, where in zip(done, ("E2E_RUN_POSTGRES", "e2e-run.toml:2"), strict=True):
        assert (each.returncode, each.stdout) == (2, "")
        assert each.stderr == (
            f"e2e-run: {where} says {mode}, which is no server that lasts: there is nothing to sweep\n"
            "To fix this: name a server: --postgres postgresql://USER@HOST:PORT/postgres, "
            "or --postgres env\n"
        )
    assert attempt_name(DEAD, 1) in server.databases()
    remove(server, attempt_name(DEAD, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("DATABASE_URL", "postgresql://host:port/shop"), ("PGSERVICE", "nowhere"), ("PGPORT", "x")],
)
def test_broken_variables_do_not_stop_a_sweep_that_names_its_server(
    server: servers.Server, tmp_path: Path, name: str, value: str
) -> None:
    done = sweep(tmp_path, "--postgres", server.url(), **{name: value})
    assert (done.returncode, done.stderr) == (0, "")
    broken = sweep(tmp_path, **{name: value})
    assert (broken.returncode, broken.stdout) == (2, "")
    assert name in broken.stderr


def test_what_was_kept_on_purpose_is_listed_as_that(server: servers.Server, tmp_path: Path) -> None:
    create(server, attempt_name(DEAD, 1))
    server.sql(f"COMMENT ON DATABASE {attempt_name(DEAD, 1)} IS '{KEPT}'")
    done = sweep(tmp_path, "--json", "--yes", "--postgres", server.url())
    (dropped,) = json.loads(done.stdout)["databases"]
    assert dropped["why"] == "kept by --keep-databases; its run is over"
    assert dropped["outcome"] == "dropped"


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    done = sweep(tmp_path, "--postgres", "postgresql://maria:secret@127.0.0.1:1/shop")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("e2e-run: The PostgreSQL server cannot be reached\n  maria@127")
    assert "secret" not in done.stderr


def test_a_pooler_is_refused_and_gone_around(server: servers.Server, tmp_path: Path) -> None:
    create(server, "test_a", "shop")
    with running_pgbouncer(server) as pooler:
        for mode in ("--yes", "--dry-run"):
            done = sweep(tmp_path, mode, "--pattern", "test_", E2E_RUN_POSTGRES=pooler.url())
            assert (done.returncode, done.stdout) == (3, "")
            assert "is a connection pooler, such as PgBouncer" in done.stderr
            assert "postgres.admin-url" in done.stderr
        assert "test_a" in server.databases()
        (tmp_path / "e2e-run.toml").write_text(f'[postgres]\nadmin-url = "{server.url()}"\n')
        done = sweep(tmp_path, "--yes", "--pattern", "test_", E2E_RUN_POSTGRES=pooler.url())
    assert (done.returncode, done.stderr) == (0, "")
    assert server.databases() == BUILT_IN | {"shop"}
    remove(server, "shop")


def test_the_applications_own_database_stays(server: servers.Server, tmp_path: Path) -> None:
    create(server, "test_app", "test_given", "test_a", "shop")
    done = sweep(
        tmp_path,
        *("--yes", "--pattern", "test_", "--postgres", server.url(database="test_given")),
        DATABASE_URL=server.url(database="test_app"),
    )
    assert done.returncode == 0
    assert server.databases() == BUILT_IN | {"test_app", "test_given", "shop"}
    remove(server, "test_app", "test_given", "shop")


# --- signals and terminals -----------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt(server: servers.Server, tmp_path: Path, number: int, code: int) -> None:
    create(server, "test_a", "shop")
    with hung_backend(server):
        process = subprocess.Popen(
            command("--yes", "--pattern", "test_", "--postgres", server.url()),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        wait_until(
            lambda: server.sql(servers.STUCK_DROP),
            "a drop is under way",
        )
        process.send_signal(number)
        said = ""
        while "Interrupted: " not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(number)
        rest, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (code, "")
    assert rest.startswith("- left     test_a\n           its drop was broken off\n\n")
    assert "test_a" in server.databases()
    again = sweep(tmp_path, "--yes", "--json", "--pattern", "test_", "--postgres", server.url())
    (dropped,) = json.loads(again.stdout)["databases"]
    assert dropped["why"] == "matches test_; a drop of it was broken off"
    assert dropped["outcome"] == "dropped"
    remove(server, "shop")


@contextlib.contextmanager
def hung_backend(server: servers.Server) -> Iterator[None]:
    """Hold a session that does not react, for which every drop waits."""
    words = ["-X", "-q", "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
    with subprocess.Popen(
        [str(server.binaries / "psql"), *words, "-d", "postgres"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(PGAPPNAME="hung"),
    ) as holder:
        ask = "SELECT pid FROM pg_stat_activity WHERE application_name = 'hung'"
        wait_until(lambda: server.sql(ask), "the session is there")
        backend = int(server.sql(ask)[0])
        try:
            with servers.stopped(backend):
                yield
        finally:
            holder.communicate()


class Terminal:
    """A process on a terminal of 80 columns."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(*args),
            cwd=folder,
            env=environment(TERM="xterm", COLUMNS="80"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read_until(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.master, 65536).decode()
                except OSError:  # the other side has closed it
                    pytest.fail(f"{text!r} did not come: {self.said}")

    def end(self) -> int:
        try:
            while data := os.read(self.master, 65536):
                self.said += data.decode()
        except OSError:
            pass
        os.close(self.master)
        return self.process.wait(timeout=30)


def test_it_asks_on_a_terminal_and_no_is_the_default(
    server: servers.Server, tmp_path: Path
) -> None:
    create(server, "test_a", "shop")
    terminal = Terminal(tmp_path, "--pattern", "test_", "--postgres", server.url())
    terminal.read_until(f"Drop 1 database on postgres@127.0.0.1:{server.port}? [y/N]: ")
    os.write(terminal.master, b"\n")
    assert terminal.end() == 1
    assert terminal.said.endswith("Nothing was dropped\r\n")
    assert "test_a" in server.databases()
    terminal = Terminal(tmp_path, "--pattern", "test_", "--postgres", server.url())
    terminal.read_until("[y/N]: ")
    os.write(terminal.master, b"y\n")
    assert terminal.end() == 0
    assert "✓ dropped" in terminal.said
    assert "1 database dropped" in terminal.said
    assert server.databases() == BUILT_IN | {"shop"}
    remove(server, "shop")
