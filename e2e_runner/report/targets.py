"""Where reports are written: checked and claimed before the run, so that no result is lost after it."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e_runner import text
from e2e_runner.errors import SetupError, UsageError
from e2e_runner.model import ReportFormat, ReportTarget

_OWN_DESCRIPTORS = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_PROBE_SIZE = 16 * 1024


class OpenTarget:
    """A claimed place for one report. Its methods raise OSError for what the disk or pipe refuses.

    A regular file gets a whole report or none (`replace`); a stream (`append`) is written as it
    comes. What is no regular file (a pipe, a device, one of this process's own descriptors) is opened
    at once and written directly.
    """

    def __init__(self, target: ReportTarget, *, file: Path, descriptor: int | None) -> None:
        self.format = target.format
        self.name = text.one_line(str(target.file))  # as the user wrote it, for messages
        self._file = file
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, data: bytes) -> None:
        """Write to the end of a stream, all of it, now."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, "it is closed")
        _write_all(self._descriptor, data)

    def replace(self, parts: Iterable[str]) -> None:
        """Write a whole report; a regular file changes in one step, or stays as it was."""
        if self._descriptor is not None:
            for part in parts:
                _write_all(self._descriptor, part.encode())
            return
        temporary = _temporary_beside(self._file)
        descriptor = os.open(temporary, _flags(os.O_EXCL), 0o666)
        try:
            with open(descriptor, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 - a descriptor has no path
                file.writelines(parts)
            temporary.replace(self._file)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def close(self) -> None:
        """Release the descriptor, if there is one. May be called twice."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # every write was complete; nothing is buffered here
                os.close(descriptor)


def open_reports(targets: Sequence[ReportTarget]) -> list[OpenTarget]:
    """Check and claim every report's place; missing folders are made.

    Raises UsageError for a path that cannot be meant (a folder, the same file twice) and SetupError
    for one that the system refuses, each naming path and reason. Nothing stays open then.
    """
    claimed: dict[str, str] = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(_claim(target, claimed)) for target in targets]
        stack.pop_all()
    return opened


def _claim(target: ReportTarget, claimed: dict[str, str]) -> OpenTarget:
    option = f"--report {target.format}={text.one_line(str(target.file))}"
    try:
        own = _own_descriptor(target.file)
        # A link is followed, so that the report replaces the file behind it and not the link.
        file = Path(os.path.realpath(target.file))
        identity = f"descriptor {own}" if own is not None else str(file)
        if identity in claimed:
            raise UsageError(
                f"{option}: {claimed[identity]} writes to the same place.",
                remedy="give each report a path of its own.",
            )
        claimed[identity] = option
        if own is not None:
            return OpenTarget(target, file=file, descriptor=os.dup(own))
        return OpenTarget(target, file=file, descriptor=_probe(target, file, option))
    except ValueError as error:  # a NUL in the path
        raise UsageError(f"{option}: {error}.", remedy="choose another path.") from error
    except OSError as error:
        raise SetupError(
            f"{option}: cannot be written: {_why(error)}.",
            facts=(f"path: {text.one_line(os.path.realpath(target.file))}",),
            remedy="choose a path in a folder that can be written to, on a disk with space left.",
        ) from error


def _own_descriptor(file: Path) -> int | None:
    """Find the descriptor behind /dev/stdout and its like.

    Opening such a path again would start at offset 0 and write over what the console wrote there.
    """
    name = str(file)
    if name in _STANDARD:
        return _STANDARD[name]
    found = _OWN_DESCRIPTORS.fullmatch(name)
    return int(found[1]) if found else None


def _probe(target: ReportTarget, file: Path, option: str) -> int | None:
    """Find out whether `file` can be written; give a descriptor where it is to be kept open."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise UsageError(f"{option}: is a folder.", remedy="name a file inside it.")
    if not stat.S_ISREG(mode):
        return _open_special(file)
    _probe_folder(file.parent)
    if target.format is ReportFormat.JSONL:
        return os.open(file, _flags(os.O_TRUNC), 0o666)
    if file.exists():
        os.close(os.open(file, os.O_WRONLY | os.O_CLOEXEC))  # a read-only file is not replaced
    return None


def _open_special(file: Path) -> int:
    # Without O_NONBLOCK the opening of a pipe that nobody reads would wait forever.
    descriptor = os.open(file, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    return descriptor


def _probe_folder(folder: Path) -> None:
    """Write and remove a small file: only that tells of a full or read-only disk."""
    temporary = _temporary_beside(folder / "probe")
    descriptor = os.open(temporary, _flags(os.O_EXCL), 0o600)
    try:
        _write_all(descriptor, bytes(_PROBE_SIZE))
    finally:
        os.close(descriptor)
        temporary.unlink()


def _temporary_beside(file: Path) -> Path:
    """Name a file of the same folder; short, so that a long name does not become too long."""
    return file.with_name(f".e2e-run-{os.urandom(8).hex()}.tmp")


def _flags(extra: int) -> int:
    return os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | extra


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _why(error: OSError) -> str:
    """Say what the system says; a pipe without a reader gets words of its own."""
    if error.errno == errno.ENXIO:
        return "no process reads this pipe, or no device is behind it"
    return error.strerror or str(error)


def describe_write_error(target: OpenTarget, error: OSError) -> str:
    """Say that a report is not whole, and why."""
    return f"the {target.format} report {target.name} is not complete: {_why(error)}"
