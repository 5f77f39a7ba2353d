"""What earlier runs tell: reads the history that `e2e_runner.recorder` writes.

::

    with History.open(state_dir) as history:
        history.past(["examples/a.py"])["examples/a.py"].duration

A project without a history has an empty one. What cannot be read raises `HistoryError`, wherever it is
found out.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from e2e_runner import past
from e2e_runner.errors import UsageError
from e2e_runner.history_file import NAME, Opened, open_to_read, telling
from e2e_runner.model import NetworkMode, Past, ResultRecord, RunRecord, Status
from e2e_runner.text import one_line, plural
from e2e_runner.verdict import is_bad

_LAST = re.compile(r"last(?:~([0-9]{1,6}))?")
_MOST_NAMED = 5  # runs, in a message

_RUN = (
    "runs.id, runs.started, runs.duration, runs.exit_code, runs.interrupted, runs.jobs, "
    "runs.network, runs.processes, runs.python, runs.version, runs.shard"
)
_RESULT = (
    "runs.id, runs.started, results.path, results.status, results.cause, results.reason, "
    "results.duration, results.cpu, results.max_rss, results.attempts, results.repeats, "
    "results.repeats_passed, results.network, results.listened"
)
_COUNTS = "results.status NOT IN ('skipped', 'not-run')"
_OK = "status IN ('passed', 'served', 'flaky', 'leaked')"


class History:
    """The history of a project. Every method raises HistoryError."""

    def __init__(self, file: Path, opened: Opened | None) -> None:
        """Read from what is `opened`; None is an empty history."""
        self._file = file
        self._opened = opened

    @classmethod
    @contextlib.contextmanager
    def open(cls, state_dir: Path) -> Iterator[Self]:
        """Have the history of a state folder for the length of the block."""
        opened = open_to_read(state_dir)
        try:
            yield cls(state_dir / NAME, opened)
        finally:
            if opened is not None:
                opened.connection.close()

    @property
    def identity(self) -> tuple[int, int] | None:
        """What tells its file from another; None when there is none."""
        return None if self._opened is None else self._opened.identity

    def runs(self, limit: int | None = None) -> list[RunRecord]:
        """Give the last runs, newest first; those that were killed or go on have no exit code."""
        rows = self._ask(
            f"SELECT {_RUN} FROM runs ORDER BY number DESC LIMIT ?",  # noqa: S608 - constant columns
            (_most(limit),),
        )
        return list(map(_run, rows))

    def results(
        self, *, path: str | None = None, run: str | None = None, limit: int | None = None
    ) -> list[ResultRecord]:
        """Give the last verdicts, newest first: on one example, of one run (its whole id), or all."""
        conditions = ["results.run = runs.number"]
        values: list[object] = []
        if path is not None:
            conditions.append("results.path = ?")
            values.append(to_sql(path))
        if run is not None:
            conditions.append("runs.id = ?")
            values.append(run)
        rows = self._ask(
            f"SELECT {_RESULT} FROM results, runs WHERE {' AND '.join(conditions)} "  # noqa: S608 - same
            "ORDER BY results.number DESC LIMIT ?",
            (*values, _most(limit)),
        )
        return [found for row in rows if (found := _result(row)) is not None]

    def verdicts(self, path: str, *, limit: int, whole_runs: bool = False) -> list[ResultRecord]:
        """Give the last verdicts on an example, newest first; `skipped` and `not-run` are none.

        With `whole_runs` only those of runs that were no part of the suite, such as a shard.
        """
        which = f"{_COUNTS} AND runs.shard = ''" if whole_runs else _COUNTS
        rows = self._ask(
            f"SELECT {_RESULT} FROM results, runs WHERE results.path = ? AND {which} "  # noqa: S608 - same
            "AND results.run = runs.number ORDER BY results.number DESC LIMIT ?",
            (to_sql(path), limit),
        )
        return [found for row in rows if (found := _result(row)) is not None]

    def paths(self) -> list[str]:
        """Give every example that there is a verdict on, sorted."""
        return sorted(from_sql(path) for (path,) in self._ask("SELECT DISTINCT path FROM results"))

    def past(
        self, paths: Iterable[str] | None = None, *, whole_runs: bool = False
    ) -> dict[str, Past]:
        """Give what the last verdicts tell of these examples, or of all; unknown ones are left out.

        With `whole_runs` only verdicts of such runs count, so that the shards of a suite can be run
        one after the other and each finds the same.

        An example is learned to need the host network when it was ok there after a verdict in a
        network of its own that may have been the isolation's doing. That holds until it passes in
        a network of its own (``--network isolated`` tries), or the run that told so is too old to be
        kept.
        """
        wanted = self.paths() if paths is None else paths
        learned = self._learned()
        found = {}
        for path in wanted:
            verdicts = self.verdicts(path, limit=past.WINDOW, whole_runs=whole_runs)
            if verdicts:
                network = NetworkMode.HOST if path in learned else None
                found[path] = past.past_of(verdicts, network=network)
        return found

    def outstanding(self, *, strict: bool = False) -> set[str]:
        """Give the examples whose last verdict was not ok; `skipped` and `not-run` are no verdicts.

        `strict` counts `leaked` and `flaky` as not ok.
        """
        rows = self._ask(
            "SELECT path, status FROM results WHERE number IN "  # noqa: S608 - same
            f"(SELECT max(number) FROM results WHERE {_COUNTS} GROUP BY path)"
        )
        known = {from_sql(path): _status(status) for path, status in rows}
        return {
            path
            for path, status in known.items()
            if status is not None and is_bad(status, strict=strict)
        }

    def find_run(self, name: str) -> RunRecord:
        """Find a run by the beginning of its id, or as ``last``, ``last~1`` (the one before it), ...

        The last one is the one that began last, whether it came to its end or not. Raises UsageError.
        """
        back = _LAST.fullmatch(name)
        if back:
            rows = self._ask(
                f"SELECT {_RUN} FROM runs ORDER BY number DESC LIMIT 1 OFFSET ?",  # noqa: S608 - same
                (int(back[1] or 0),),
            )
        elif not _is_utf8(name):
            rows = []
        else:
            rows = self._ask(
                f"SELECT {_RUN} FROM runs WHERE substr(id, 1, ?) = ? ORDER BY number DESC",  # noqa: S608 - same
                (max(len(name), 1), name),
            )
            rows = [row for row in rows if row[0] == name] or rows
        if len(rows) != 1:
            raise self._no_such_run(name, [_run(row).id for row in rows])
        return _run(rows[0])

    # --- the parts of it -------------------------------------------------------------------------

    def _learned(self) -> set[str]:
        """Give the examples that need the host network."""
        rows = self._ask(
            "SELECT path FROM results AS told WHERE suspect <> '' AND network = 'host' "  # noqa: S608 - same
            f"AND {_OK} AND NOT EXISTS (SELECT 1 FROM results WHERE path = told.path "
            f"AND number > told.number AND network = 'isolated' AND {_OK})"
        )
        return {from_sql(path) for (path,) in rows}

    def _no_such_run(self, name: str, candidates: Sequence[str]) -> UsageError:
        shown = one_line(name)
        if candidates:
            return UsageError(
                f"{shown!r} is the beginning of {plural(len(candidates), 'run')}.",
                facts=_named(candidates),
                remedy="name more of the id",
            )
        newest = [run.id for run in self.runs(_MOST_NAMED)]
        if not newest:
            return UsageError(
                f"There is no run {shown!r}: the history {self._file} has none.",
                remedy="run `e2e-run` first",
            )
        (count,) = self._ask("SELECT count(*) FROM runs")[0]
        return UsageError(
            f"There is no run {shown!r} in the history.",
            facts=(f"it has {plural(count, 'run')}; the newest are:", *newest),
            remedy="name the beginning of an id, `last`, or `last~1` for the one before it",
        )

    def _ask(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        if self._opened is None:
            return []
        with telling(self._file):
            rows: list[Any] = self._opened.connection.execute(query, values).fetchall()
        return rows


def to_sql(path: str) -> str | bytes:
    """Make a path what SQLite can hold: names that are not UTF-8 are bytes there."""
    return path if _is_utf8(path) else os.fsencode(path)


def _is_utf8(text: str) -> bool:
    """Tell whether SQLite can hold a text: arguments and names of files may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_sql(value: object) -> str:
    """Give the path that `to_sql` was given."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _most(limit: int | None) -> int:
    return -1 if limit is None else limit


def _named(ids: Sequence[str]) -> tuple[str, ...]:
    more = len(ids) - _MOST_NAMED
    return (*ids[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else []))


def _status(value: object) -> Status | None:
    """Take what is in the table for a status; None for one that this version does not know."""
    try:
        return Status(str(value))
    except ValueError:
        return None


def _run(row: Sequence[Any]) -> RunRecord:
    (
        run_id,
        started,
        duration,
        code,
        interrupted,
        jobs,
        network,
        processes,
        python,
        version,
        shard,
    ) = row
    return RunRecord(
        id=run_id,
        started=started,
        duration=duration,
        exit_code=code,
        interrupted=bool(interrupted),
        jobs=jobs,
        network=network,
        processes=processes,
        python=python,
        version=version,
        shard=shard,
    )


def _result(row: Sequence[Any]) -> ResultRecord | None:
    """Make a verdict of a row; None for one that this version does not understand."""
    status = _status(row[3])
    if status is None:
        return None
    try:
        return ResultRecord(
            run=row[0],
            started=row[1],
            path=from_sql(row[2]),
            status=status,
            cause=row[4],
            reason=row[5],
            duration=row[6],
            cpu=row[7],
            max_rss=row[8],
            attempts=row[9],
            repeats=row[10],
            repeats_passed=row[11],
            network=None if row[12] is None else NetworkMode(row[12]),
            listened=tuple(map(int, row[13].split())),
        )
    except (AttributeError, ValueError):
        return None
