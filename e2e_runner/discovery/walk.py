"""Searches folders for scripts: the only part of discovery that reads the file system."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from e2e_runner.discovery.rules import is_test, refuse_file, refuse_folder
from e2e_runner.discovery.source import LARGEST
from e2e_runner.globs import compile_glob, matches
from e2e_runner.model import NotExample, RunSettings

_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that was found. `named` says that the user named the file itself."""

    file: str  # absolute
    path: str  # relative to the root
    named: bool = False


@dataclass(slots=True, kw_only=True)
class Walked:
    """What a search found. `importers` are no examples, but what they import are helpers."""

    candidates: list[Found] = field(default_factory=list)
    importers: list[Found] = field(default_factory=list)
    not_examples: list[NotExample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Folders:
    """The names in folders, each read once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Give the names in `folder`; none where it cannot be read."""
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    self._names[folder] = frozenset(entry.name for entry in entries)
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def is_package(self, folder: str) -> bool:
        """Say whether the folder is a Python package with an ``__init__.py``."""
        return "__init__.py" in self.names(folder)


def relative_path(file: str, root: str) -> str:
    """Give the path that names a file: relative to `root` below it, else absolute.

    The root may be known by another name (a symlink) than the file.
    """
    for name, base in ((file, root), (_real(file), os.path.realpath(root))):
        prefix = base.rstrip("/") + "/"
        if name.startswith(prefix):
            return name[len(prefix) :]
    return file


def read_source(file: str) -> bytes | None:
    """Read a script as far as it is analysed, and one byte more; None when it cannot be read."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 - a Path costs more than the rest
            return stream.read(LARGEST + 1)
    except OSError:
        return None


def walk(run: RunSettings) -> Walked:
    """Search the paths of the run. Each file is found once, however often it is reached."""
    return _Walk(run).search()


def _real(file: str) -> str:
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 - a Path costs more


class _Walk:
    def __init__(self, run: RunSettings) -> None:
        self.run = run
        self.root = str(run.root)
        self.result = Walked()
        self.include = [compile_glob(pattern) for pattern in run.include]
        self.folders: set[_Identity] = set()  # searched
        self.files: dict[_Identity, str] = {}  # found, with the path of each
        self.named_folders = {str(path) for path in run.paths if path.is_dir()}
        self.named_files = {str(path) for path in run.paths} - self.named_folders
        # Followed after everything else, so that a file is known by its own name where it has one.
        self.linked_folders: list[tuple[str, str, _Excludes]] = []
        self.linked_files: list[tuple[str, str]] = []

    def search(self) -> Walked:
        for name in dict.fromkeys(map(str, self.run.paths)):
            if name in self.named_files:
                self._named_file(Path(name))
        for path in self.run.paths:
            if str(path) in self.named_folders:
                self._folder(str(path), *self._start(path))
        while self.linked_folders:
            self._folder(*self.linked_folders.pop(0))
        for file, shown in self.linked_files:
            self._linked_file(file, shown)
        return self.result

    def _named_file(self, path: Path) -> None:
        file = str(path)
        try:
            info = path.stat()
        except OSError:  # a broken symlink: it fails when it is run
            pass
        else:
            if self.files.setdefault((info.st_dev, info.st_ino), file) != file:
                return  # named twice, once by a symlink
        shown = relative_path(file, self.root)
        self.result.candidates.append(Found(file=file, path=shown, named=True))

    def _start(self, path: Path) -> tuple[str, "_Excludes"]:
        shown = relative_path(str(path), self.root)
        if path == self.run.root:
            shown = ""
        # A folder given by name is searched even where a pattern would skip it as a whole.
        probes = (shown, f"{shown}/\x01") if shown else ()
        active = [
            (pattern, compile_glob(pattern))
            for pattern in self.run.exclude
            if not any(matches(pattern, probe) for probe in probes)
        ]
        return shown, _Excludes(patterns=tuple(active))

    def _folder(self, top: str, top_path: str, excludes: "_Excludes") -> None:
        """Search a folder and the real folders in it; symlinks are put off."""
        stack = [(top, top_path)]
        while stack:
            folder, path = stack.pop()
            try:
                info = os.stat(folder)  # noqa: PTH116 - a Path costs more
                identity = (info.st_dev, info.st_ino)
                if identity in self.folders:
                    if folder not in self.named_folders:
                        self._refuse(path + "/", "symlink to a folder that is searched already")
                    continue
                self.folders.add(identity)
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                self._refuse(f"{path or '.'}/", reason)
                self.result.warnings.append(f"{path or '.'}/ {reason}: nothing in it is run")
                continue
            for entry in listed:
                inner = f"{path}/{entry.name}" if path else entry.name
                if _is_folder(entry):
                    if self._descends(entry, inner, excludes):
                        stack.append((entry.path, inner))
                else:
                    self._file(entry, inner, info.st_dev, excludes)

    def _descends(self, entry: os.DirEntry[str], path: str, excludes: "_Excludes") -> bool:
        """Say whether to search a folder now; notes why not, or puts a symlink off."""
        if entry.path in self.named_folders:
            return False  # searched on its own
        reason = refuse_folder(entry.name) or excludes.reason(path)
        if not reason and os.path.lexists(os.path.join(entry.path, "pyvenv.cfg")):  # noqa: PTH118 - a Path costs more
            reason = "virtual environment"
        if reason:
            self._refuse(path + "/", reason)
            return False
        if entry.is_symlink():
            self.linked_folders.append((entry.path, path, excludes))
            return False
        return True

    def _file(self, entry: os.DirEntry[str], path: str, device: int, excludes: "_Excludes") -> None:
        name = entry.name
        is_python = name.endswith(".py")
        if not is_python and not any(pattern.fullmatch(path) for pattern in self.include):
            return
        found = Found(file=entry.path, path=path)
        reason = refuse_file(name)
        excluded = "" if reason else excludes.reason(path)
        if reason or excluded:
            if not self._is_named(found.file):
                self._refuse(path, reason or excluded)
                if (
                    is_python
                    and not is_test(name)
                    and not name.startswith(".")
                    and _is_regular(entry)
                ):
                    self.result.importers.append(found)
        elif entry.is_symlink():
            self.linked_files.append((entry.path, path))
        elif not _is_regular(entry):
            self._refuse(path, "not a regular file")
        else:
            self._add(found, (device, entry.inode()), link=False)

    def _linked_file(self, file: str, path: str) -> None:
        found = Found(file=file, path=path)
        try:
            info = os.stat(file)  # noqa: PTH116 - a Path costs more
        except OSError:  # a broken symlink: it fails when it is run
            if not self._is_named(file):
                self.result.candidates.append(found)
            return
        if stat.S_ISREG(info.st_mode):
            self._add(found, (info.st_dev, info.st_ino), link=True)
        else:
            self._refuse(path, "not a regular file")

    def _add(self, found: Found, identity: _Identity, *, link: bool) -> None:
        first = self.files.setdefault(identity, found.file)
        if first == found.file:
            if not self._is_named(found.file):
                self.result.candidates.append(found)
        elif link or self._is_named(first):
            shown = relative_path(first, self.root)
            self._refuse(found.path, f"the same file as {shown}")
        else:  # a hard link has a name of its own, which a script may go by
            self.result.candidates.append(found)

    def _is_named(self, file: str) -> bool:
        return file in self.named_files

    def _refuse(self, path: str, reason: str) -> None:
        self.result.not_examples.append(NotExample(path=path, reason=reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Excludes:
    """The patterns of `exclude` that hold below one of the searched folders."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...]

    def reason(self, path: str) -> str:
        for pattern, compiled in self.patterns:
            if compiled.fullmatch(path.lstrip("/")):
                return f"excluded by {pattern}"
        return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symlink that leads to itself
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def parents(folder: str, top: str) -> Iterator[str]:
    """Give `folder` and the folders around it, up to `top`."""
    yield folder
    while folder != top and folder.startswith(top.rstrip("/") + "/"):
        folder = os.path.dirname(folder)  # noqa: PTH120 - a Path costs more
        yield folder
