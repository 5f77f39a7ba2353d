"""The temporary folder, the logs and the file for records of a script.

They are made while its predecessor runs and removed while its successor does, as each costs the file
system a good part of a millisecond.
"""

import contextlib
import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e_runner.logs import Log
from e2e_runner.record_file import RecordFile
from e2e_runner.rundir import RunDir
from e2e_runner.trees import remove_tree

LOG_SUFFIX = ".log"

_MOST_SPARE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What a script is given. `logs` are one, or one each for stdout and stderr."""

    scratch: Path
    logs: tuple[Log, ...]
    records: RecordFile | None  # None: a companion's, which is part of another's story


class Workspaces:
    """Makes the workspaces of a run, and removes their temporary folders in the background."""

    def __init__(self, run_dir: RunDir, *, separate: bool, max_output: int) -> None:
        """`separate` asks for two logs; `max_output` bounds each, in bytes."""
        self._run_dir = run_dir
        self._separate = separate
        self._max_output = max_output
        self._ahead: dict[str, Workspace] = {}  # by example
        self._taken: Counter[tuple[str, str]] = Counter()  # names by now, by example and suffix
        self._count = 0
        self._spare: list[Path] = []  # temporary folders as good as new
        self._spare_records: list[RecordFile] = []  # the same, of files for records
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix="janitor")

    def close(self) -> None:
        """Remove what was made and not used, and finish the removals."""
        for workspace in self._ahead.values():
            self._discard(workspace)
        self._ahead.clear()
        for records in self._spare_records:
            records.remove()
        self._spare_records.clear()
        self._janitor.shutdown()

    def prepare(self, example: str) -> None:
        """Make the workspace of an example ahead of its turn. What fails now is tried again then."""
        if example not in self._ahead:
            with contextlib.suppress(OSError):
                self._ahead[example] = self._make(example, LOG_SUFFIX)

    def take(self, example: str, suffix: str = LOG_SUFFIX) -> Workspace:
        """Give the workspace of an example; raises OSError.

        `suffix` completes the name of its log. One of its own is that of a companion of the example.
        The logs of further attempts are numbered.
        """
        if suffix == LOG_SUFFIX and example in self._ahead:
            return self._ahead.pop(example)
        return self._make(example, suffix)

    def give_back(self, workspace: Workspace) -> None:
        """Close the logs, which stay, and have the rest removed. Raises OSError.

        Most scripts touch neither folder nor records: such are as good as new and serve again.
        """
        self._give_back_records(workspace.records)
        if len(self._spare) < _MOST_SPARE and _is_untouched(workspace.scratch):
            self._spare.append(workspace.scratch)
        else:
            self._janitor.submit(remove_tree, workspace.scratch)
        for log in workspace.logs:
            log.close()

    def new_file(self, text: str) -> Path:
        """Keep a text for every user to read, for the length of the run. Raises OSError."""
        file = self._run_dir.scratch / f"file-{os.urandom(8).hex()}"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        file.chmod(0o644)
        return file

    def kept_databases(self, example: str) -> Path:
        """Name the folder that the databases of a failed attempt are kept in. Raises OSError."""
        return self._run_dir.log_file(example, self._numbered(example, ".postgres"))

    def _give_back_records(self, records: RecordFile | None) -> None:
        if records is None:
            return
        if len(self._spare_records) < _MOST_SPARE and records.is_untouched:
            self._spare_records.append(records)
        else:
            self._janitor.submit(records.remove)

    def _make(self, example: str, suffix: str) -> Workspace:
        numbered = self._numbered(example, suffix)
        names = [f".out{numbered}", f".err{numbered}"] if self._separate else [numbered]
        with contextlib.ExitStack() as undo:
            logs = []
            for name in names:
                log = Log(self._run_dir.log_file(example, name), self._max_output)
                undo.callback(log.discard)
                logs.append(log)
            records = self._new_records() if suffix == LOG_SUFFIX else None
            if records is not None:
                undo.callback(records.remove)
            scratch = self._new_scratch()
            undo.pop_all()
        return Workspace(scratch=scratch, logs=tuple(logs), records=records)

    def _numbered(self, example: str, suffix: str) -> str:
        """Tell what further attempts at an example leave from what the first has left."""
        self._taken[example, suffix] += 1
        nth = self._taken[example, suffix]
        return suffix if nth == 1 else f".{nth}{suffix}"

    def _new_scratch(self) -> Path:
        if self._spare:
            return self._spare.pop()
        self._count += 1
        scratch = self._run_dir.scratch / str(self._count)
        scratch.mkdir()
        scratch.chmod(_scratch_mode())
        return scratch

    def _new_records(self) -> RecordFile:
        if self._spare_records:
            return self._spare_records.pop()
        return RecordFile(self._run_dir.scratch / f"records-{os.urandom(8).hex()}")

    @staticmethod
    def _discard(workspace: Workspace) -> None:
        remove_tree(workspace.scratch)
        if workspace.records is not None:
            workspace.records.remove()
        for log in workspace.logs:
            log.discard()


def _scratch_mode() -> int:
    """Open to all where root runs scripts, as /tmp is: one that drops its privileges needs it too."""
    return 0o1777 if os.geteuid() == 0 else 0o700


def _is_untouched(scratch: Path) -> bool:
    try:
        status = scratch.lstat()
        with os.scandir(scratch) as entries:
            return (
                next(entries, None) is None
                and stat.S_ISDIR(status.st_mode)
                and stat.S_IMODE(status.st_mode) == _scratch_mode()
                and (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
            )
    except OSError:
        return False
