"""`e2e-run postgres`: real servers in the foreground, on what real runs kept, and fresh ones."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (
    IS_ROOT,
    NOBODY,
    Project,
    free_port,
    in_tier,
    is_living,
    project,
    wait_gone,
    wait_until,
)
from servers import VERSIONS, Server, binaries, identity, path_with, psql, running_server

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
CASES = [
    pytest.param(which, user, marks=needs_root if user else (), id=f"{which}-{user or 'self'}")
    for which in VERSIONS
    for user in (None, NOBODY)
]
FAILS = """
import asyncio, asyncpg, os, sys

async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute("CREATE TABLE evidence (what text)")
    await connection.execute("INSERT INTO evidence VALUES ('from the run')")
    sys.exit(1)

asyncio.run(main())
"""


def other(which: str) -> str:
    return next(name for name in VERSIONS if name != which)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A project whose run has kept a server, and a temporary folder for the calls in it."""

    project: Project
    command: list[str]  # as the note of the run says
    tmp: Path
    environment: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.project.root / self.command[-1]

    def leaves_nothing(self) -> None:
        assert list(self.tmp.iterdir()) == []


@contextlib.contextmanager
def made(which: str, user: int | None, *, config: str = "", run: bool = True) -> Iterator[Place]:
    """Make a project with a failing example, and run it with the server of a version."""
    with in_tier("scan", user) as place:
        tmp, cache = place.root / "t", place.root / "cache"
        for folder in (tmp, cache):
            folder.mkdir(mode=0o700)
            if user is not None:
                os.chown(folder, user, user)
        if user is None:
            tmp.chmod(0o711)
        environment = {
            "HOME": str(place.root),
            "TMPDIR": str(tmp),
            "XDG_CACHE_HOME": str(cache),
            "PATH": path_with(binaries(which)),
        }
        place.write("examples/it's one.py", FAILS)
        place.write("e2e-run.toml", (place.root / "e2e-run.toml").read_text() + config)
        command: list[str] = []
        if run:
            done = place.run("--keep-databases", env=environment)
            assert done.code == 1, done.stdout
            [line] = [line for line in done.stdout.splitlines() if "e2e-run postgres" in line]
            command = shlex.split(line[line.index("e2e-run postgres") :])
        yield Place(project=place, command=command, tmp=tmp, environment=environment)


@pytest.fixture(scope="module")
def kept() -> Iterator[Callable[..., Place]]:
    """Give what a run kept: of a version and a user, made once."""
    places: dict[tuple[str, int | None], Place] = {}
    with contextlib.ExitStack() as stack:

        def give(which: str = "system", user: int | None = None) -> Place:
            if (which, user) not in places:
                places[which, user] = stack.enter_context(made(which, user))
            return places[which, user]

        yield give


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A call of the command whose server answers."""

    process: subprocess.Popen[str]
    url: str
    told: str  # on stderr

    def url_of(self, database: str) -> str:
        """Give the address of a database, as the command prints it; `database` is a part of its name."""
        [found] = re.findall(rf"^  \S*{database}\S*: (\S+)$", self.told, re.MULTILINE)
        return str(found)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal; gives exit code and the rest of stdout and stderr."""
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stdout, stderr

    def offspring(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def postmaster(self) -> psutil.Process:
        [found] = [each for each in self.offspring() if is_living(each) and "-D" in each.cmdline()]
        return found


@contextlib.contextmanager
def serving(place: Place, *args: str, **how: Any) -> Iterator[Serving]:
    """Call the command and wait until its server answers."""
    how.setdefault("env", place.environment)
    with place.project.start("postgres", *args, **how) as process:
        try:
            assert process.stdout
            assert process.stderr
            url = process.stdout.readline().rstrip("\n")
            told = ""
            for line in process.stderr:
                told += line
                if line == "Ctrl-C ends it.\n":
                    break
            else:
                pytest.fail(f"no server: {told}")
            yield Serving(process=process, url=url, told=told)
        finally:
            process.kill()


def refused(place: Place, *args: str, **how: Any) -> tuple[int, str]:
    """Call the command where it gives no server; gives exit code and stderr."""
    how.setdefault("env", place.environment)
    with place.project.start("postgres", *args, **how) as process:
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
        assert not stdout
        assert "Traceback" not in stderr
        return process.returncode, stderr


def ask(url: str, query: str) -> list[str]:
    """Ask with psql, as a user who pastes the address."""
    return psql(binaries("wheel"), query, where=[url])


def copy_of(place: Place, target: Path) -> str:
    subprocess.run(["cp", "-a", place.folder, target], check=True)
    return str(target)


# --- what was kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "user"), CASES)
def test_what_a_run_kept_is_served_and_changes_stay(
    which: str, user: int | None, kept: Callable[..., Place]
) -> None:
    place = kept(which, user)
    assert place.command[:2] == ["e2e-run", "postgres"]
    assert place.command[2].startswith(".e2e-run/runs/")  # of the project's root, as the log's is
    # The programs that are found first are of another version.
    environment = place.environment | {"PATH": path_with(binaries(other(which)))}
    with serving(place, *place.command[2:], env=environment) as served:
        url = served.url_of("test_e2e_")
        assert ask(url, "TABLE evidence") == ["from the run"]
        major = (place.folder / "data" / "PG_VERSION").read_text().strip()
        assert ask(served.url, "SHOW server_version")[0].startswith(f"{major}.")
        assert f"PostgreSQL {major}." in served.told
        assert str(place.folder) in served.told
        ask(url, "INSERT INTO evidence VALUES ('by hand')")
        assert served.end(signal.SIGINT) == (0, "", "")
    assert "shut down" in (place.folder / "server.log").read_text()
    with serving(place, *place.command[2:], env=environment) as served:
        url = served.url_of("test_e2e_")
        assert ask(url, "TABLE evidence") == ["from the run", "by hand"]
        ask(url, "DELETE FROM evidence WHERE what = 'by hand'")
        assert served.end(signal.SIGTERM) == (0, "", "")
    place.leaves_nothing()
    assert len(list(place.project.root.glob(".e2e-run/runs/*"))) == 1


def test_a_second_call_for_the_same_folder_is_refused(kept: Callable[..., Place]) -> None:
    place = kept()
    port = free_port()
    with serving(place, *place.command[2:], "--port", str(port)) as served:
        assert f":{port}/" in served.url
        code, stderr = refused(place, *place.command[2:])
        assert code == 3
        assert "runs on" in stderr
        assert f"port {port}" in stderr
        assert ask(served.url, "SELECT 1") == ["1"]
        assert served.end(signal.SIGINT)[0] == 0
    place.leaves_nothing()


def test_a_server_that_was_started_by_hand_is_left_alone(kept: Callable[..., Place]) -> None:
    place = kept()
    port = free_port()
    owner = (place.folder / "data").stat()
    if IS_ROOT:
        place.folder.chmod(0o711)
    with (
        tempfile.TemporaryDirectory(prefix="e2e-test-") as sockets,
        contextlib.ExitStack() as stack,
    ):
        os.chown(sockets, owner.st_uid, owner.st_gid)
        by_hand = stack.enter_context(
            subprocess.Popen(
                [
                    *(str(binaries("system") / "postgres"), "-D", str(place.folder / "data")),
                    *("-c", f"port={port}", "-c", f"unix_socket_directories={sockets}"),
                ],
                stderr=subprocess.DEVNULL,
                cwd="/",
                **identity(owner.st_uid if IS_ROOT else None),
            )
        )
        stack.callback(by_hand.send_signal, signal.SIGINT)
        pid_file = place.folder / "data" / "postmaster.pid"
        wait_until(lambda: pid_file.exists() and "ready" in pid_file.read_text(), "it was ready")
        code, stderr = refused(place, *place.command[2:])
        assert code == 3
        assert f"port {port}" in stderr
        assert by_hand.poll() is None


def test_the_folder_of_a_run_is_not_removed_while_it_is_served(
    kept: Callable[..., Place],
) -> None:
    place = kept()
    with serving(place, *place.command[2:]) as served:
        place.project.write("passes.py", "assert True\n")
        with_few = place.environment | {"E2E_RUN_KEEP_RUNS": "1"}
        assert place.project.run("passes.py", env=with_few).code == 0
        assert ask(served.url_of("test_e2e_"), "TABLE evidence") == ["from the run"]
        assert served.end(signal.SIGINT)[0] == 0
    assert place.folder.exists()


@pytest.mark.parametrize("all_at_once", [False, True])
def test_killed_it_leaves_the_data_to_the_next(
    kept: Callable[..., Place], *, all_at_once: bool
) -> None:
    place = kept()
    with serving(place, *place.command[2:]) as served:
        # The cluster's own settings give commits a moment to reach the disk.
        statement = "SET synchronous_commit = on; CREATE TABLE survives (x int)"
        ask(served.url_of("test_e2e_"), statement)
        offspring = served.offspring()
        assert offspring
        if all_at_once:  # so that nobody cleans up
            for process in offspring:
                with contextlib.suppress(psutil.NoSuchProcess):  # it died with another
                    process.kill()
        served.process.kill()
        wait_gone(offspring)
    if not all_at_once:
        wait_until(lambda: not list(place.tmp.iterdir()), "its folders were gone")
    assert (place.folder / "data" / "postmaster.pid").exists()
    with serving(place, *place.command[2:]) as served:
        url = served.url_of("test_e2e_")
        assert ask(url, "SELECT count(*) FROM survives") == ["0"]
        ask(url, "DROP TABLE survives")
        assert served.end(signal.SIGINT)[0] == 0
    place.leaves_nothing()


def test_a_second_signal_ends_it_at_once(kept: Callable[..., Place]) -> None:
    place = kept()
    with serving(place, *place.command[2:]) as served:
        offspring = served.offspring()
        served.postmaster().suspend()  # it would be waited for
        served.process.send_signal(signal.SIGINT)
        assert served.end(signal.SIGTERM) == (0, "", "")
        wait_gone(offspring)
    with serving(place, *place.command[2:]) as served:
        assert ask(served.url_of("test_e2e_"), "TABLE evidence") == ["from the run"]
        assert served.end(signal.SIGINT)[0] == 0
    place.leaves_nothing()


@needs_root
def test_root_serves_what_nobody_cannot_get_to(kept: Callable[..., Place]) -> None:
    place = kept()
    with tempfile.TemporaryDirectory(prefix="e2e-test-") as shut:
        folder = copy_of(place, Path(shut, "kept"))  # below a folder for root alone
        for _ in range(2):
            with serving(place, folder) as served:
                assert ask(served.url_of("test_e2e_"), "TABLE evidence") == ["from the run"]
                assert served.end(signal.SIGINT)[0] == 0
    place.leaves_nothing()


@needs_root
def test_data_of_another_user_is_refused_in_words(kept: Callable[..., Place]) -> None:
    roots, mine = kept(), kept("system", NOBODY)
    code, stderr = refused(mine, str(roots.folder))
    assert code == 3
    assert "as root" in stderr


# --- a folder that is none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("missing", "there is no such folder"),
        ("empty", "it is empty"),
        ("file", "it is no folder"),
        ("other", "it has one.txt, two.txt"),
        ("unfinished", "it was not kept to the end"),
        ("unfinished/data", "is the data of a server alone"),
        ("whole/data", "give the folder above it"),
    ],
)
def test_a_folder_that_holds_no_kept_server(
    folder: str, words: str, kept: Callable[..., Place], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for file in ("other/one.txt", "other/two.txt", "whole/password"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    for name in ("unfinished", "whole"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "PG_VERSION").write_text("15\n")
    code, stderr = refused(kept(), str(tmp_path / folder))
    assert code == 2
    assert words in stderr
    assert "give the folder" in stderr


def test_a_version_that_is_not_installed_is_named(
    kept: Callable[..., Place], tmp_path: Path
) -> None:
    place = kept()
    if IS_ROOT:
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
    folder = copy_of(place, tmp_path / "kept")
    (tmp_path / "kept" / "data" / "PG_VERSION").write_text("99\n")
    code, stderr = refused(place, folder)
    assert code == 3
    assert "PostgreSQL 99" in stderr
    assert "found: " in stderr
    place.leaves_nothing()


def test_a_server_that_cannot_start_says_why(kept: Callable[..., Place], tmp_path: Path) -> None:
    place = kept()
    folder = copy_of(place, tmp_path / "kept")
    with (tmp_path / "kept" / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    code, stderr = refused(place, folder)
    assert code == 3
    assert "no_such_setting" in stderr
    assert "--postgres URL" not in stderr
    place.leaves_nothing()


def test_a_signal_before_the_server_answers(kept: Callable[..., Place], tmp_path: Path) -> None:
    place = kept()
    folder = copy_of(place, tmp_path / "kept")
    (tmp_path / "kept" / "data" / "standby.signal").touch()
    with (tmp_path / "kept" / "data" / "postgresql.conf").open("a") as file:
        file.write("hot_standby = off\n")
    log = tmp_path / "kept" / "server.log"
    with place.project.start("postgres", folder, env=place.environment) as process:
        try:
            wait_until(lambda: log.exists() and "standby mode" in log.read_text(), "it waited")
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=60) == ("", "")
            assert process.returncode == 143
        finally:
            process.kill()
    place.leaves_nothing()


# --- a fresh server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare() -> Iterator[Place]:
    """Give a place for fresh servers."""
    with made("wheel", None, run=False) as place:
        yield place


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_fresh_server_leaves_nothing(number: signal.Signals, bare: Place) -> None:
    with serving(bare) as served:
        data = Path(ask(served.url, "SHOW data_directory")[0])
        assert data.exists()
        assert ask(served.url, "SELECT current_user") == ["postgres"]
        assert served.end(number) == (0, "", "")
    assert not data.parent.exists()
    bare.leaves_nothing()
    assert not (bare.project.root / ".e2e-run").exists()


def test_a_fresh_server_dies_with_the_command(bare: Place) -> None:
    with serving(bare) as served:
        data = Path(ask(served.url, "SHOW data_directory")[0])
        offspring = served.offspring()
        served.process.kill()
        wait_gone(offspring)
    wait_until(lambda: not data.exists() and not list(bare.tmp.iterdir()), "its folders were gone")


@needs_root
def test_an_ordinary_user_has_a_fresh_server_too() -> None:
    with made("system", NOBODY, run=False) as place:
        with serving(place) as served:
            assert ask(served.url, "SELECT 1") == ["1"]
            assert served.end(signal.SIGINT)[0] == 0
        place.leaves_nothing()


def test_a_port_that_is_taken(bare: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, stderr = refused(bare, "--port", str(port))
    assert code == 3
    assert f"port {port} cannot be had" in stderr
    assert f"e2e-run ports {port}" in stderr
    bare.leaves_nothing()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 0, ""), (signal.SIGKILL, 3, "ended by itself")],
)
def test_a_server_that_somebody_else_ends(
    number: signal.Signals, code: int, words: str, bare: Place
) -> None:
    with serving(bare) as served:
        served.postmaster().send_signal(number)
        stdout, stderr = served.process.communicate(timeout=60)
        assert (served.process.returncode, stdout) == (code, "")
        assert words in stderr
    bare.leaves_nothing()


def test_an_address_that_nobody_can_read_is_no_server(bare: Place) -> None:
    with (
        Path("/dev/full").open("w") as full,
        bare.project.start("postgres", env=bare.environment, stdout=full) as process,
    ):
        try:
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 3
    assert "cannot be written" in stderr
    assert "Traceback" not in stderr
    bare.leaves_nothing()


# --- --keep-databases elsewhere ------------------------------------------------------------------


def test_the_one_server_of_a_run_is_kept_at_its_end() -> None:
    with made("system", None, config='[postgres]\nscope = "run"\n') as place:
        with serving(place, *place.command[2:]) as served:
            assert ask(served.url_of("test_e2e_"), "TABLE evidence") == ["from the run"]
            assert served.end(signal.SIGINT)[0] == 0
        place.leaves_nothing()


@pytest.fixture(scope="module")
def configured() -> Iterator[Server]:
    with running_server(binaries("system")) as server:
        yield server


def test_on_a_configured_server_the_address_works_and_a_sweep_takes_all(configured: Server) -> None:
    with project() as place:
        place.write("examples/fails.py", FAILS)
        before = configured.databases()
        done = place.run("--keep-databases", "--postgres", configured.url())
        assert done.code == 1, done.stdout
        [url] = re.findall(r"its database is kept: (\S+)", done.stdout)
        assert ask(url, "TABLE evidence") == ["from the run"]
        assert len(configured.databases() - before) == 1
        swept = subprocess.run(
            place.command("sweep-dbs", "--postgres", configured.url(), "--yes"),
            cwd=place.root,
            env=place.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert swept.returncode == 0, swept.stdout
        assert configured.databases() == before
        assert configured.sql("SELECT count(*) FROM pg_roles WHERE rolname LIKE '%e2e%'") == ["0"]
