"""Writes the history of a run as it goes, in a thread of its own: no example waits for a disk.

What it cannot write changes nothing about the run. It says so once.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from e2e_runner.events import AttemptFinished, Event, ExampleFinished, RunFinished, RunStarted
from e2e_runner.history import to_sql
from e2e_runner.history_file import (
    NAME,
    HistoryError,
    Opened,
    Trouble,
    flat,
    is_there,
    move_aside,
    moved_words,
    open_to_write,
    telling,
    transaction,
)
from e2e_runner.model import NetworkMode, Result

MOST_RUNS = 1_000
MOST_RESULTS = 100_000  # some 20 MB

_PAUSE = 0.25  # seconds; what comes in meanwhile is written together
_PATIENCE = 5.0  # seconds for the last of it: a disk may hang
_LONGEST_REASON = 500  # characters

# A run that is written once more, as to a history that was begun anew, may find some of it there.
_INSERT_RUN = (
    "INSERT INTO runs (id, started, jobs, network, processes, python, version, shard) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_INSERT_RESULT = (
    "INSERT INTO results (run, path, status, cause, reason, duration, cpu, max_rss, attempts, "
    "repeats, repeats_passed, network, listened, suspect) "
    "VALUES ((SELECT number FROM runs WHERE id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (run, path) DO NOTHING"
)
# Numbers grow by one, but for runs that were removed: never less than there are.
_RESULTS_SPAN = "SELECT coalesce(max(number) - min(number) + 1, 0) FROM results"
_LAST_TO_GO = """
SELECT min(
    (SELECT max(number) - 1 FROM runs),
    max(
        coalesce((SELECT number FROM runs ORDER BY number DESC LIMIT 1 OFFSET ?), 0),
        coalesce((SELECT run FROM results ORDER BY number DESC LIMIT 1 OFFSET ?), 0)
    )
)
"""
_FINISH_RUN = "UPDATE runs SET duration = ?, exit_code = ?, interrupted = ? WHERE id = ?"

_Row = tuple[str, Sequence[object]]


class Recorder:
    """Takes the events of one run. A run that starts nothing leaves no trace."""

    def __init__(
        self,
        state_dir: Path,
        *,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        most_runs: int = MOST_RUNS,
        most_results: int = MOST_RESULTS,
    ) -> None:
        """`warn` is called by whoever calls `handle` or `close`; `clock` tells seconds since the epoch.

        `most_runs` and `most_results` are what is kept of the newest.
        """
        self._state_dir = state_dir
        self._warn = warn
        self._clock = clock
        self._most_runs = most_runs
        self._most_results = most_results
        self._id = ""
        self._suspects: dict[str, str] = {}  # path -> why an attempt may have failed by isolation
        self._listened: dict[str, set[int]] = {}  # of the attempts before the last
        self._rows: list[_Row] = []  # of the whole run: a history that broke is begun anew
        self._problems: list[str] = []
        self._told = 0
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def handle(self, event: Event) -> None:
        """Take one event. Only the last one of a run waits until all is written."""
        match event:
            case RunStarted():
                self._start(event)
            case AttemptFinished():
                self._keep_attempt(event.result)
            case ExampleFinished():
                if self._thread is not None:
                    self._add(_INSERT_RESULT, self._result_values(event.result))
            case RunFinished():
                if self._thread is not None:
                    values = (event.at, event.exit_code, event.interrupted, self._id)
                    self._add(_FINISH_RUN, values)
                self.close()
            case _:
                pass
        self._tell_problems()

    def close(self) -> None:
        """Write what is left, also of a run that broke off. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._end.set()
            self._wake.set()
            thread.join(_PATIENCE)
            if thread.is_alive():
                self._problems.append(
                    f"the history {self._state_dir / NAME} is not complete: the disk did not answer "
                    f"within {_PATIENCE:g}s"
                )
        self._tell_problems()

    def _start(self, event: RunStarted) -> None:
        run = event.run
        if run.processes is None:
            return
        self._id = run.id
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()
        self._add(
            _INSERT_RUN,
            (
                run.id,
                run.started,
                run.jobs,
                run.network.value,
                run.processes.value,
                _plain(run.python),
                run.version,
                str(event.plan.cut or ""),
            ),
        )

    def _keep_attempt(self, result: Result) -> None:
        # Where there was none to be had, nothing was learned of the example.
        if result.isolation_suspect and result.network is NetworkMode.ISOLATED:
            self._suspects[result.path] = result.isolation_suspect
        self._listened.setdefault(result.path, set()).update(result.listened)

    def _result_values(self, result: Result) -> Sequence[object]:
        suspect = result.isolation_suspect or self._suspects.pop(result.path, "")
        listened = self._listened.pop(result.path, set()) | {*result.listened}
        return (
            self._id,
            to_sql(result.path),
            result.status.value,
            result.cause,
            _plain(result.reason),
            result.duration,
            result.cpu,
            result.max_rss,
            result.attempts,
            result.repeats,
            result.repeats_passed,
            None if result.network is None else result.network.value,
            " ".join(map(str, sorted(listened))),
            _plain(suspect),
        )

    def _add(self, statement: str, values: Sequence[object]) -> None:
        self._rows.append((statement, values))
        self._wake.set()

    def _tell_problems(self) -> None:
        while self._told < len(self._problems):
            self._told += 1
            self._warn(self._problems[self._told - 1])

    def _work(self) -> None:
        """Write until the end, in the thread."""
        writer = _Writer(self._state_dir, self._rows, self._clock, self._problems)
        try:
            with contextlib.closing(writer):
                while not self._end.is_set():
                    self._wake.wait()
                    self._wake.clear()
                    _write_unless_busy(writer)
                    self._end.wait(_PAUSE)
                writer.write()
                with contextlib.suppress(HistoryError):  # what is too much stays until the next run
                    writer.prune(most_runs=self._most_runs, most_results=self._most_results)
        except HistoryError as error:
            self._problems.append(f"{flat(error)}; this run is not in it, or not all of it")
        except Exception as error:  # noqa: BLE001 - else the thread ends with a traceback amid the run's output
            self._problems.append(
                f"the history {self._state_dir / NAME} is not complete: "
                f"{type(error).__name__}: {error}"
            )


class _Writer:
    """Writes rows, in one thread. `rows` grows meanwhile, and `problems` is what it has to say."""

    def __init__(
        self,
        state_dir: Path,
        rows: Sequence[_Row],
        clock: Callable[[], float],
        problems: list[str],
    ) -> None:
        self._state_dir = state_dir
        self._rows = rows
        self._clock = clock
        self._problems = problems
        self._opened: Opened | None = None
        self._written = 0

    def close(self) -> None:
        """Close what is open."""
        if self._opened is not None:
            self._opened.connection.close()
            self._opened = None

    def write(self) -> None:
        """Write what is new; a damaged history is moved aside and begun anew. Raises HistoryError."""
        try:
            self._write()
        except HistoryError as error:
            if error.trouble is not Trouble.DAMAGED:
                raise
            identity = None if self._opened is None else self._opened.identity
            self.close()
            name = move_aside(self._state_dir, identity, self._clock())
            if name:
                self._problems.append(moved_words(error, name))
            self._written = 0
            self._write()

    def _write(self) -> None:
        count = len(self._rows)
        if self._opened is not None and not is_there(self._state_dir, self._opened.identity):
            self.close()  # another run found it damaged, or somebody removed it
            self._written = 0
        if self._opened is None:
            self._opened = open_to_write(self._state_dir)
        connection = self._opened.connection
        with telling(self._state_dir / NAME), transaction(connection):
            for statement, values in self._rows[self._written : count]:
                connection.execute(statement, values)
        self._written = count

    def prune(self, *, most_runs: int, most_results: int) -> None:
        """Remove the oldest runs, so that so many are left; the newest stays. Raises HistoryError."""
        if self._opened is None:
            return
        connection = self._opened.connection
        with telling(self._state_dir / NAME):
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
            (results,) = connection.execute(_RESULTS_SPAN).fetchone()
            if runs <= most_runs and results <= most_results:
                return
            with transaction(connection):
                (last,) = connection.execute(_LAST_TO_GO, (most_runs, most_results)).fetchone()
                connection.execute("DELETE FROM results WHERE run <= ?", (last,))
                connection.execute("DELETE FROM runs WHERE number <= ?", (last,))


def _write_unless_busy(writer: _Writer) -> None:
    """Write what is new; what another process has locked is tried again with what comes next."""
    try:
        writer.write()
    except HistoryError as error:
        if error.trouble is not Trouble.BUSY:
            raise


def _plain(text: str) -> str:
    """Make text from outside what SQLite can hold, and not too long."""
    return text[:_LONGEST_REASON].encode("utf-8", "backslashreplace").decode("utf-8")
