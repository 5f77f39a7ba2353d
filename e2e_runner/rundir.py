"""The state folder ``.e2e-run/`` of a project: one folder a run, with its logs, and what it must give back.

::

    .e2e-run/
      .gitignore            "*"
      runs/ID/.run/lock         held by flock(2) as long as the run lives; released however it dies
      runs/ID/.run/record.json  what the run made outside this folder
      runs/ID/.run/helpers.txt  complaints of the helper processes
      runs/ID/PATH.log          the log of the example PATH
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e_runner.errors import SetupError
from e2e_runner.trees import remove_tree

_OWN = ".run"  # the part of a run's folder that is no log; no log's name lacks a suffix
_NAME_MAX = 200  # bytes in one file name, leaving room for suffixes below the usual 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRun:
    """A run that died without cleaning up: the names of what it may have left."""

    id: str
    scratch: Path | None
    cgroup: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDir:
    """The folder of a live run."""

    id: str
    folder: Path
    scratch: Path  # temporary folders of the examples; short, as socket paths are limited

    @property
    def spawner_log(self) -> Path:
        """Where the helper processes complain."""
        return self.folder / _OWN / "helpers.txt"

    def note_cgroup(self, cgroup: Path) -> None:
        """Record the cgroup that holds this run's cgroups, for a later run to find; raises OSError."""
        _write_record(self.folder, scratch=self.scratch, cgroup=cgroup)

    def log_file(self, example: str, suffix: str = ".log") -> Path:
        """Name the log of an example and make its folder; raises OSError."""
        parts = [_safe_name(part) for part in example.split("/") if part not in ("", ".")]
        file = self.folder.joinpath(*parts[:-1], parts[-1] + suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@contextlib.contextmanager
def open_run(state_dir: Path, run_id: str) -> Iterator[RunDir]:
    """Make the folder of a run and hold its lock for the length of the block.

    Raises SetupError when the state folder or the temporary folder cannot be written.
    """
    folder = state_dir / "runs" / run_id
    with contextlib.ExitStack() as stack:
        try:
            (folder / _OWN).mkdir(parents=True)
            (state_dir / ".gitignore").write_text("*\n", encoding="utf-8")
            lock = os.open(folder / _OWN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            scratch = Path(tempfile.mkdtemp(prefix="e2e-run-"))
            stack.callback(remove_tree, scratch)
            if os.geteuid() == 0:
                scratch.chmod(0o711)  # scripts that drop their privileges must get to their own
            _write_record(folder, scratch=scratch, cgroup=None)
        except OSError as error:
            raise SetupError(
                f"The state folder {state_dir} cannot be used: {error.strerror}.",
                facts=(f"failed at: {error.filename}",) if error.filename else (),
                remedy="make the folder writable and see that its disk has room; "
                "it lies beside the config file, else in the working directory.",
            ) from error
        try:
            yield RunDir(id=run_id, folder=folder, scratch=scratch)
        finally:
            # With the record kept, a later run tries again.
            if remove_tree(scratch):
                (folder / _OWN / "record.json").unlink(missing_ok=True)


def is_live(state_dir: Path, run_id: str) -> bool:
    """Tell whether the runner of `run_id` is alive, by its lock."""
    if not run_id or "/" in run_id or run_id in (".", ".."):
        return False
    try:
        fd = os.open(state_dir / "runs" / run_id / _OWN / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def dead_runs(state_dir: Path) -> tuple[DeadRun, ...]:
    """List the runs that ended without giving back what they had made."""
    found = []
    for record in sorted(state_dir.glob(f"runs/*/{_OWN}/record.json")):
        run_id = record.parent.parent.name
        if is_live(state_dir, run_id):
            continue
        named: dict[str, Path] = {}
        # A record that was cut off by a full disk or a crash names nothing.
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            content = json.loads(record.read_text(encoding="utf-8"))
            named = {key: Path(value) for key, value in content.items() if value is not None}
        found.append(DeadRun(id=run_id, scratch=named.get("scratch"), cgroup=named.get("cgroup")))
    return tuple(found)


def forget(state_dir: Path, run: DeadRun) -> None:
    """Remove the temporary folder of a dead run and its record; its logs stay."""
    gone = True
    if run.scratch is not None and run.scratch.name.startswith("e2e-run-"):
        with contextlib.suppress(OSError):
            # Somebody else may have made a folder of this name since.
            if run.scratch.lstat().st_uid == os.getuid():
                gone = remove_tree(run.scratch)
    if gone:
        with contextlib.suppress(OSError):
            (state_dir / "runs" / run.id / _OWN / "record.json").unlink()


def prune(state_dir: Path, keep: int) -> None:
    """Remove the folders of the oldest runs, so that `keep` are left; live ones always stay."""
    with contextlib.suppress(OSError):
        # Ids begin with the time, so their order is that of the runs.
        folders = sorted(path for path in (state_dir / "runs").iterdir() if path.is_dir())
        for folder in folders[: max(0, len(folders) - keep)]:
            if not is_live(state_dir, folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _write_record(folder: Path, *, scratch: Path, cgroup: Path | None) -> None:
    record = {"scratch": str(scratch), "cgroup": None if cgroup is None else str(cgroup)}
    (folder / _OWN / "record.json").write_text(json.dumps(record), encoding="utf-8")


def _safe_name(part: str) -> str:
    if part == "..":
        return "__"
    encoded = os.fsencode(part)
    if len(encoded) <= _NAME_MAX:
        return part
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return os.fsdecode(encoded[: _NAME_MAX - 13]) + "-" + digest
