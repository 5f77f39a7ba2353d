"""The state folder ``.e2e-run/`` of a project: one folder a run, with its logs, and what it must give back.

::

    .e2e-run/
      .gitignore            "*"
      runs/ID/.run/lock         held by flock(2) as long as the run lives; released however it dies
      runs/ID/.run/record.json  what the run made outside this folder
      runs/ID/.run/helpers.txt  complaints of the helper processes
      runs/ID/PATH.log          the log of the example PATH

A record may be a copy, or come with a repository. So a temporary folder bears a mark that names the
run's folder here, and is removed only for a record that lies there.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from e2e_runner.errors import SetupError
from e2e_runner.segments import release_segments
from e2e_runner.trees import MARK, is_real_folder, remove_tree

PREFIX = "e2e-run-"  # of the names of temporary folders, the only ones that are removed

_OWN = ".run"  # the part of a run's folder that is no log; no log's name lacks a suffix
_LONGEST_MARK = 65536  # bytes
_NAME_MAX = 200  # bytes in one file name, leaving room for suffixes below the usual 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRun:
    """A run that died without cleaning up: the names of what it may have left."""

    id: str
    scratch: Path | None
    cgroup: Path | None
    folders: tuple[Path, ...] = ()  # outside of the scratch folder


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
        self._note(cgroup=str(cgroup))

    def note_folder(self, folder: Path) -> None:
        """Record a folder that is going to be made outside of `scratch`, for a later run to find.

        Its name begins as that of `scratch` does. Raises OSError.
        """
        self._note(folders=[*map(str, _noted(_read_record(self.folder))), str(folder)])

    def mark_folder(self, folder: Path) -> None:
        """Mark a folder that was noted, once it is made: without a mark it stays. Raises OSError."""
        _mark(folder, self.folder)

    def server_log(self, number: int) -> Path:
        """Name the log of server `number` of this run and make its folder; raises OSError."""
        file = self.folder / _OWN / f"postgres-{number}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def own_file(self, name: str) -> Path:
        """Name a file of the run itself, beside its lock."""
        return self.folder / _OWN / name

    def _note(self, **facts: object) -> None:
        known = {"scratch": str(self.scratch)} | _read_record(self.folder)
        _write_record(self.folder, known | facts)

    def log_file(self, example: str, suffix: str = ".log") -> Path:
        """Name the log of an example and make its folder; raises OSError."""
        parts = [_safe_name(part) for part in example.split("/") if part not in ("", ".")]
        file = self.folder.joinpath(*parts[:-1], parts[-1] + suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def new_run_id(now: float) -> str:
    """Make an identifier that sorts by time; `now` is in seconds since the epoch.

    The oldest runs are removed by this order, so it has to hold within a second too.
    """
    microseconds = int(now % 1 * 1_000_000)
    second = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{second}-{microseconds:05x}{os.urandom(1).hex()[0]}"


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
            scratch = Path(tempfile.mkdtemp(prefix=PREFIX))
            stack.callback(remove_tree, scratch)
            _mark(scratch, folder)
            if os.geteuid() == 0:
                scratch.chmod(0o711)  # scripts that drop their privileges must get to their own
            _write_record(folder, {"scratch": str(scratch)})
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
            noted = [_remove_marked(each, folder) for each in _noted(_read_record(folder))]
            if min([_remove(scratch), *noted]):
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


@contextlib.contextmanager
def spared(path: Path) -> Iterator[None]:
    """Keep the run that `path` lies in from being removed as an old one, for the length of the block."""
    with contextlib.ExitStack() as stack:
        for parent in (path, *path.parents):
            with contextlib.suppress(OSError):
                fd = os.open(parent / _OWN / "lock", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # in vain while the run itself lives
        yield


def dead_runs(state_dir: Path) -> tuple[DeadRun, ...]:
    """List the runs that ended without giving back what they had made."""
    found = []
    records: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # somebody removes the whole folder at this moment
        records = sorted(state_dir.glob(f"runs/*/{_OWN}/record.json"))
    for record in records:
        run_id = record.parent.parent.name
        if is_live(state_dir, run_id):
            continue
        content = _read_record(record.parent.parent)
        found.append(
            DeadRun(
                id=run_id,
                scratch=_path(content.get("scratch")),
                cgroup=_path(content.get("cgroup")),
                folders=_noted(content),
            )
        )
    return tuple(found)


def forget(state_dir: Path, run: DeadRun) -> None:
    """Remove the temporary folders of a dead run and its record; its logs stay."""
    home = state_dir / "runs" / run.id
    folders = run.folders if run.scratch is None else (run.scratch, *run.folders)
    if min([_remove_marked(folder, home) for folder in folders], default=True):
        with contextlib.suppress(OSError):
            (home / _OWN / "record.json").unlink()


def prune(state_dir: Path, keep: int) -> None:
    """Remove the folders of the oldest runs, so that `keep` are left; live ones always stay."""
    with contextlib.suppress(OSError):
        # Ids begin with the time, so their order is that of the runs.
        folders = sorted(path for path in (state_dir / "runs").iterdir() if path.is_dir())
        for folder in folders[: max(0, len(folders) - keep)]:
            if not is_live(state_dir, folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> bool:
    """Remove a temporary folder; False when it is still there, as that of a server that lives."""
    return release_segments(folder) and remove_tree(folder)


def _remove_marked(folder: Path, run: Path) -> bool:
    """Remove a temporary folder of the run whose folder is `run`; False when it is still there.

    A folder that is not the run's is nothing to remove.
    """
    with contextlib.suppress(OSError):
        if (
            folder.name.startswith(PREFIX)
            and is_real_folder(folder)
            and folder.lstat().st_uid == os.geteuid()
            and _read_mark(folder) == _mark_of(run)
        ):
            return _remove(folder)
    return True


def _mark(folder: Path, run: Path) -> None:
    """Mark a temporary folder as one of the run whose folder is `run`; raises OSError."""
    with _open_mark(folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        file.write(_mark_of(run))


def _read_mark(folder: Path) -> bytes | None:
    with contextlib.suppress(OSError), _open_mark(folder, os.O_RDONLY | os.O_NONBLOCK) as file:
        return file.read(_LONGEST_MARK)
    return None


def _open_mark(folder: Path, flags: int) -> BinaryIO:
    fd = os.open(folder / MARK, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb" if flags & os.O_WRONLY else "rb")


def _mark_of(run: Path) -> bytes:
    return os.fsencode(run.resolve()) + b"\n"


def _read_record(folder: Path) -> dict[str, Any]:
    """Read what a run noted; a record that was cut off by a full disk or a crash names nothing."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / _OWN / "record.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace the record at once: what it names is made right after."""
    fresh = folder / _OWN / "record.new"
    fresh.write_text(json.dumps(record), encoding="utf-8")
    fresh.replace(folder / _OWN / "record.json")


def _noted(record: dict[str, Any]) -> tuple[Path, ...]:
    """Give the folders that a record names; another version may have noted other things."""
    folders = record.get("folders")
    found = map(_path, folders if isinstance(folders, list) else ())
    return tuple(path for path in found if path is not None)


def _path(value: object) -> Path | None:
    """Take what a record says for the path of a folder, when it can be one."""
    if isinstance(value, str) and "\0" not in value and Path(value).is_absolute():
        return Path(value)
    return None


def _safe_name(part: str) -> str:
    if part == "..":
        return "__"
    encoded = os.fsencode(part)
    if len(encoded) <= _NAME_MAX:
        return part
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return os.fsdecode(encoded[: _NAME_MAX - 13]) + "-" + digest
