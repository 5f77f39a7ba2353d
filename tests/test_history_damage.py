"""Whatever is wrong with the history, no run hears of it but by one warning."""

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import IS_ROOT, NOBODY, Outcome, Project, ordinary_python, project, wait_until
from report_history import history

from e2e_runner.history import History
from e2e_runner.history_file import NAME, HistoryError, Trouble, telling
from e2e_runner.model import Result, Status
from e2e_runner.recorder import Recorder

PASSES = "print('hello')\n"
RESULT = Result(path="a.py", status=Status.PASSED, attempts=1)
# Ends once somebody says so.
WAITS = """
import os, pathlib, time
pathlib.Path("started").touch()
while not os.path.exists("go"):
    time.sleep(0.01)
"""
# Fails to open the history of a folder, and keeps the error, and so whatever its frames hold.
LEAVES_OPEN = """
import os, pathlib, sys
from e2e_runner.history_file import HistoryError, open_to_read

def opened():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + fd))
        except FileNotFoundError:
            pass
    return [path for path in found if path.startswith(sys.argv[1])]

try:
    open_to_read(pathlib.Path(sys.argv[1]))
except HistoryError as error:
    kept = error
print(kept.message)
print("left open:", opened())
"""


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as made:
        made.write("examples/a.py", PASSES)
        made.write("examples/b.py", PASSES)
        yield made


def state_of(made: Project) -> Path:
    return made.root / ".e2e-run"


def warnings(done: Outcome) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("warning: ")]


def assert_good(done: Outcome) -> None:
    assert done.code == 0, done.stdout + done.stderr
    assert set(done.statuses.values()) == {"passed"}
    assert done.stderr == ""


def runs_of(made: Project) -> list[int | None]:
    """Give the exit codes of the runs in the history, newest first."""
    with History.open(state_of(made)) as known:
        return [run.exit_code for run in known.runs()]


def fill(file: Path, runs: int = 30) -> None:
    """Make a history of many pages."""
    for _ in range(runs):
        recorder = Recorder(file.parent, warn=pytest.fail)
        for event in history([RESULT, *(_long(n) for n in range(40))]):
            recorder.handle(event)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _long(number: int) -> Result:
    return Result(path=f"{number}.py", status=Status.FAILED, reason="why " * 100, attempts=1)


# --- what is damaged is moved aside ---------------------------------------------------------------


def no_database(file: Path) -> None:
    file.write_bytes(b"no database at all, but long enough for the header of one " * 50)


def cut_off(file: Path) -> None:
    fill(file)
    os.truncate(file, 5000)


def torn_header(file: Path) -> None:
    fill(file)
    with file.open("r+b") as opened:
        opened.write(b"\0" * 50)


def torn_pages(file: Path) -> None:
    """Spoil every page but the first, which has the tables' names."""
    fill(file)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xa5" * (size - 4096))


def somebody_elses(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE cookies (name)")


def without_a_table(file: Path) -> None:
    fill(file, runs=1)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE results")


def without_a_column(file: Path) -> None:
    fill(file, runs=1)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("ALTER TABLE results DROP COLUMN listened")


def no_utf8(file: Path) -> None:
    fill(file, runs=1)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "UPDATE results SET path = 'examples/a.py', reason = CAST(x'ff' AS TEXT) WHERE path = 'a.py'"
        )
        connection.commit()


def older_tables(file: Path) -> None:
    fill(file, runs=1)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 0")


DAMAGES = [
    *(no_database, cut_off, torn_header, torn_pages, somebody_elses),
    *(without_a_table, without_a_column, no_utf8, older_tables),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_moved_aside_and_begun_anew(
    made: Project, damage: Callable[[Path], None]
) -> None:
    state_of(made).mkdir()
    file = state_of(made) / NAME
    damage(file)
    before = file.read_bytes()

    done = made.run()
    assert_good(done)
    (warning,) = warnings(done)
    named = re.fullmatch(
        rf"warning: The history {re.escape(str(file))} is damaged: .+: it was moved to "
        r"(history\.db\.damaged-\d{8}-\d{6}), and a new one is begun",
        warning,
    )
    assert named, warning
    assert (state_of(made) / named[1]).read_bytes() == before
    assert runs_of(made) == [0]

    again = made.run()
    assert_good(again)
    assert warnings(again) == []
    assert runs_of(made) == [0, 0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_reading_a_damaged_history_says_so_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(HistoryError) as caught:
        read_all(tmp_path)
    assert caught.value.trouble is Trouble.DAMAGED
    assert str(caught.value).startswith(f"The history {tmp_path / NAME} is damaged: ")
    assert (tmp_path / NAME).read_bytes() == before


def read_all(state: Path) -> None:
    with History.open(state) as known:
        known.past()
        known.outstanding()


def test_listing_tells_of_a_damaged_history_and_leaves_it(made: Project) -> None:
    state_of(made).mkdir()
    torn_pages(state_of(made) / NAME)
    with made.start("list") as listing:
        stdout, stderr = listing.communicate(timeout=60)
    assert listing.returncode == 0
    assert "2 examples to run" in stdout
    assert re.fullmatch(r"warning: The history .* is damaged: .*\n", stderr), stderr
    assert [path.name for path in state_of(made).glob(f"{NAME}.damaged-*")] == []


def test_with_a_damaged_history_last_failed_leaves_nothing_out(made: Project) -> None:
    state_of(made).mkdir()
    no_database(state_of(made) / NAME)
    done = made.run("--last-failed")
    assert_good(done)
    (warning,) = warnings(done)
    assert warning.endswith("a new one is begun; so --last-failed leaves nothing out")
    assert len(done.statuses) == 2


def test_only_the_newest_damaged_histories_are_kept(tmp_path: Path) -> None:
    told: list[str] = []
    for second in range(6):
        no_database(tmp_path / NAME)
        recorder = Recorder(tmp_path, warn=told.append, clock=lambda now=second: float(now))  # type: ignore[misc]
        for event in history([RESULT]):
            recorder.handle(event)
    assert len(told) == 6
    assert sorted(path.name for path in tmp_path.glob(f"{NAME}.*")) == [
        f"{NAME}.damaged-19700101-00000{second}" for second in (3, 4, 5)
    ]


@pytest.mark.parametrize("how", ["removed", "replaced", "spoilt"])
def test_a_history_that_breaks_during_a_run_is_begun_anew_with_all_of_it(
    tmp_path: Path, how: str
) -> None:
    file = tmp_path / NAME
    told: list[str] = []
    recorder = Recorder(tmp_path, warn=told.append)
    events = history([RESULT, Result(path="b.py", status=Status.PASSED, attempts=1)])
    for event in events[:4]:  # up to the verdict on the first
        recorder.handle(event)
    wait_until(lambda: verdicts(tmp_path) == ["a.py"], "the first verdict was written")
    if how == "removed":
        for path in tmp_path.iterdir():
            path.unlink()
    elif how == "replaced":
        no_database(tmp_path / "other")
        (tmp_path / "other").replace(file)
        for suffix in ("-wal", "-shm"):  # which hold all of it by now
            (tmp_path / (NAME + suffix)).unlink()
    else:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TABLE results")
    for event in events[4:]:
        recorder.handle(event)
    assert verdicts(tmp_path) == ["b.py", "a.py"]
    with History.open(tmp_path) as known:
        assert [run.exit_code for run in known.runs()] == [0]
    assert len(told) == (0 if how == "removed" else 1)


def verdicts(state: Path) -> list[str]:
    with History.open(state) as known:
        return [each.path for each in known.results()]


# --- what is not for this version, user or process is left alone -----------------------------------


def test_a_history_of_a_newer_version_is_left_as_it_is(made: Project) -> None:
    state_of(made).mkdir()
    file = state_of(made) / NAME
    fill(file, runs=1)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 7")
    before = file.read_bytes()
    done = made.run()
    assert_good(done)
    (warning,) = warnings(done)
    assert warning == (
        f"warning: The history {file} was written by a newer version of e2e-run "
        "(its tables are of version 7; this one knows version 1); to fix this: update e2e-run, or "
        "move the file away"
    )
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "link that leads nowhere", "loop"])
def test_what_is_no_file_is_left_as_it_is(made: Project, kind: str) -> None:
    state_of(made).mkdir()
    file = state_of(made) / NAME
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file if kind == "loop" else made.root / "nowhere")
    done = made.run()
    assert_good(done)
    (warning,) = warnings(done)
    assert warning.startswith(f"warning: The history {file} cannot be used: ")
    assert os.path.lexists(file)
    assert not (made.root / "nowhere").exists()


@pytest.fixture
def ordinary() -> Iterator[Project]:
    """A project of a user to whom the modes of files mean something."""
    user = NOBODY if IS_ROOT else None
    if user is not None and ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with project(user=user) as made:
        made.write("examples/a.py", PASSES)
        yield made


def test_a_history_that_may_not_be_written_is_read(ordinary: Project) -> None:
    assert_good(ordinary.run())
    file = state_of(ordinary) / NAME
    file.chmod(0o444)
    done = ordinary.run("--shard", "1/1")
    assert_good(done)
    assert "balanced by the history" in done.stdout
    (warning,) = warnings(done)
    assert warning.startswith(f"warning: The history {file} cannot be used: attempt to write a ")
    assert "; this run is not in it, or not all of it" in warning
    assert runs_of(ordinary) == [0]


def test_a_history_that_may_not_be_read_is_left_alone(ordinary: Project) -> None:
    assert_good(ordinary.run())
    file = state_of(ordinary) / NAME
    file.chmod(0)
    done = ordinary.run()
    assert_good(done)
    (warning,) = warnings(done)
    assert warning.startswith(f"warning: The history {file} cannot be used: ")


def test_a_history_in_a_folder_that_may_not_be_written_is_listed(ordinary: Project) -> None:
    assert_good(ordinary.run())
    state_of(ordinary).chmod(0o555)
    with ordinary.start("list", "--shard", "1/1", "--json") as listing:
        stdout, stderr = listing.communicate(timeout=60)
    state_of(ordinary).chmod(0o755)
    assert (listing.returncode, stderr) == (0, ""), stdout
    assert {path.name for path in state_of(ordinary).iterdir()} >= {NAME}


def test_what_cannot_be_used_is_closed_again(ordinary: Project) -> None:
    """Also the second connection, which a folder that may not be written makes necessary."""
    assert_good(ordinary.run())
    file = state_of(ordinary) / NAME
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 7")
    state_of(ordinary).chmod(0o555)
    python = sys.executable if ordinary.user is None else str(ordinary_python())
    done = subprocess.run(
        [python, "-c", LEAVES_OPEN, state_of(ordinary)],
        env=ordinary.environment(None),
        user=ordinary.user,
        group=ordinary.user,
        extra_groups=None if ordinary.user is None else [],
        capture_output=True,
        text=True,
        check=True,
    )
    state_of(ordinary).chmod(0o755)
    assert done.stdout == (
        f"The history {file} was written by a newer version of e2e-run.\nleft open: []\n"
    )


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_a_full_disk_changes_nothing_about_a_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        told: list[str] = []
        recorder = Recorder(disk, warn=told.append)
        for event in history([_long(number) for number in range(400)]):
            recorder.handle(event)
        (warning,) = told
        assert re.match(
            r"The history .* cannot be used: (database or disk is full|disk I/O)", warning
        )
        assert warning.endswith(
            "see that the disk has room; this run is not in it, or not all of it"
        )
    finally:
        subprocess.run(["umount", disk], check=True)


# --- locked ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Keep every other process from reading and writing a history."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE runs SET jobs = jobs")
        connection.execute("COMMIT")
        yield connection


def test_a_history_that_is_locked_for_long_changes_nothing_about_a_run(made: Project) -> None:
    assert_good(made.run())
    with locked(state_of(made) / NAME):
        done = made.run()
    assert_good(done)
    assert [line.partition(" (")[0] for line in warnings(done)] == [
        f"warning: The history {state_of(made) / NAME} is locked by another process"
    ] * 2
    first, last = warnings(done)
    assert "waited 1s for it" in first
    assert last.endswith("this run is not in it, or not all of it")
    assert runs_of(made) == [0]


def test_a_history_that_is_locked_for_a_while_is_written_later(made: Project) -> None:
    assert_good(made.run())
    made.write("examples/a.py", WAITS)
    with (
        contextlib.closing(sqlite3.connect(state_of(made) / NAME, isolation_level=None)) as other,
        made.running() as running,
    ):
        other.execute("BEGIN IMMEDIATE")
        wait_until((made.root / "examples/started").exists, "the example ran")
        other.execute("ROLLBACK")
        (made.root / "examples/go").touch()
        done = running.outcome()
    assert_good(done)
    assert warnings(done) == []
    assert runs_of(made) == [0, 0]


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        *((name, Trouble.BUSY) for name in ("BUSY", "LOCKED", "PROTOCOL")),
        *((name, Trouble.UNUSABLE) for name in ("INTERRUPT", "TOOBIG", "MISUSE", "NOLFS", "IOERR")),
        *((name, Trouble.DAMAGED) for name in ("CORRUPT", "NOTADB", "FORMAT", "ERROR")),
        *((name, Trouble.DAMAGED) for name in ("CONSTRAINT", "MISMATCH")),
    ],
)
def test_only_what_tells_of_damage_is_damage(tmp_path: Path, name: str, trouble: Trouble) -> None:
    error = sqlite3.DatabaseError("why")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    with pytest.raises(HistoryError) as caught, telling(tmp_path / NAME):
        raise error
    assert caught.value.trouble is trouble


def test_reading_that_is_interrupted_is_no_damage(tmp_path: Path) -> None:
    fill(tmp_path / NAME, runs=1)
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as connection:
        connection.set_progress_handler(lambda: 1, 1)
        with pytest.raises(HistoryError, match="interrupted") as caught, telling(tmp_path / NAME):
            connection.execute("SELECT count(*) FROM results").fetchone()
    assert caught.value.trouble is Trouble.UNUSABLE


# --- killed, and at once ---------------------------------------------------------------------------


def test_a_killed_run_leaves_what_it_had(made: Project) -> None:
    made.write("examples/b.py", WAITS)
    with made.running("--jobs", "1") as running:
        wait_until((made.root / "examples/started").exists, "the second example ran")
        wait_until(lambda: verdicts(state_of(made)), "the first verdict was written")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    assert verdicts(state_of(made)) == ["examples/a.py"]
    assert runs_of(made) == [None]

    (made.root / "examples/go").touch()
    done = made.run()
    assert_good(done)
    assert warnings(done) == []
    assert runs_of(made) == [0, None]


def test_two_runs_at_once_are_both_kept(made: Project) -> None:
    made.write("examples/a.py", WAITS)
    with made.running("-k", "a.py") as one, made.running("-k", "b.py") as other:
        wait_until((made.root / "examples/started").exists, "the first run is under way")
        second = other.outcome()
        assert_good_but_skipped(second)
        (made.root / "examples/go").touch()
        assert_good_but_skipped(one.outcome())
    assert runs_of(made) == [0, 0]
    assert sorted(verdicts(state_of(made))) == ["examples/a.py", "examples/b.py"]


def assert_good_but_skipped(done: Outcome) -> None:
    assert done.code == 0, done.stdout + done.stderr
    assert sorted(done.statuses.values()) == ["passed", "skipped"]
    assert warnings(done) == []


def begin(state: Path, number: int) -> None:
    recorder = Recorder(state, warn=print)
    run = [Result(path=f"{number}-{n}.py", status=Status.PASSED, attempts=1) for n in range(20)]
    for event in history(run):
        recorder.handle(event)


def test_many_processes_may_find_the_same_damage(tmp_path: Path) -> None:
    no_database(tmp_path / NAME)
    processes = [
        multiprocessing.get_context("spawn").Process(target=begin, args=(tmp_path, number))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(verdicts(tmp_path)) == 80
    assert len(list(tmp_path.glob(f"{NAME}.damaged-*"))) == 1


def test_a_history_is_as_private_as_other_files(made: Project) -> None:
    assert_good(made.run())
    mode = stat.S_IMODE((state_of(made) / NAME).stat().st_mode)
    shutil.copy(state_of(made) / ".gitignore", made.root / "usual")
    assert mode == stat.S_IMODE((made.root / "usual").stat().st_mode)
