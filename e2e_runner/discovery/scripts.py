"""One script with all that its source says, and what it imports.

What is found out about a script is the same whichever files and folders are searched: all that it
imports is read, each file once, wherever it lies.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from e2e_runner.discovery.postgres import Marks
from e2e_runner.discovery.source import LARGEST, Facts, analyse_python, analyse_text, decode
from e2e_runner.discovery.walk import Folders, Found, parents, read_source, relative_path
from e2e_runner.metadata import MAY_HAVE_METADATA, Metadata, read_metadata
from e2e_runner.text import size


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file, what its source says, and its metadata."""

    found: Found
    facts: Facts
    metadata: Metadata
    is_large: bool = False  # larger than what is analysed

    @property
    def folder(self) -> str:
        """The folder that the script is in."""
        return os.path.dirname(self.found.file)  # noqa: PTH120 - a Path costs more

    @property
    def suffix(self) -> str:
        """The suffix of the file's name."""
        return os.path.splitext(self.found.file)[1]  # noqa: PTH122 - a Path costs more

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return os.path.basename(self.found.file).removesuffix(self.suffix)  # noqa: PTH119 - same

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what was not understood or not looked at."""
        large = f"{self.found.path} is larger than {size(LARGEST)}: only its metadata is looked at"
        return (*((large,) if self.is_large else ()), *self.metadata.warnings)


def read_script(found: Found, data: bytes | None, marks: Marks) -> Script:
    """Analyse a script; `data` is None for one that cannot be read."""
    if data is None:
        return Script(found=found, facts=Facts(), metadata=Metadata())
    suffix = os.path.splitext(found.file)[1]  # noqa: PTH122 - a Path costs more
    facts = analyse_python(data, marks) if suffix == ".py" else analyse_text(data, marks)
    metadata = Metadata()
    if MAY_HAVE_METADATA.search(data):
        metadata = read_metadata(decode(data), found.path, suffix)
    return Script(found=found, facts=facts, metadata=metadata, is_large=len(data) > LARGEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a script and all that it imports want, its own first, then what is nearest to it."""

    postgres: str = ""  # what wants PostgreSQL
    ports: tuple[int, ...] = ()
    gone_to: tuple[int, ...] = ()  # ports that only clients of services go to


class Modules:
    """Which scripts import which others.

    An import is looked for where Python would: beside the script, above its package, and, when the
    script changes ``sys.path``, in every folder up to `root`.
    """

    def __init__(
        self, scripts: Iterable[Script], *, root: str, folders: Folders, marks: Marks
    ) -> None:
        self._scripts = {script.found.file: script for script in scripts}
        self._searched = frozenset(self._scripts)
        self._root = root
        self._folders = folders
        self._marks = marks
        self._imported: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
        self._told: dict[tuple[str, tuple[str, ...]], tuple[tuple[int, str], ...]] = {}

    def helpers(self) -> dict[str, str]:
        """Find the scripts that another one imports; gives the importer's path by helper's file."""
        helpers: dict[str, str] = {}
        scripts = [self._scripts[file] for file in self._searched]
        for script in sorted(scripts, key=lambda each: each.found.path):
            for file in self._imports(script, self._bases(script)):
                if file in self._searched:
                    helpers.setdefault(file, script.found.path)
        return helpers

    def program(self, script: Script) -> Program:
        """Say what a script wants, with what it imports."""
        modules = list(self._telling_modules(script))
        parts = [script.facts, *(module.facts for module in modules)]
        ports = dict.fromkeys(script.facts.ports)
        for facts in parts[1:]:
            ports |= dict.fromkeys(port for port in facts.ports if port not in facts.guarded_ports)
        gone_to = dict.fromkeys(
            port for facts in parts for port in facts.gone_to if port not in ports
        )
        if any(facts.starts for facts in parts):  # it may be what it starts that serves them
            ports |= gone_to
        return Program(
            postgres=_why_postgres(script, modules), ports=tuple(ports), gone_to=tuple(gone_to)
        )

    def _telling_modules(self, script: Script) -> Iterator[Script]:
        """Give the modules that a script imports and that say what it wants, the nearest first."""
        bases = self._bases(script)  # where its modules are looked for too: one program, one path
        depths: dict[str, int] = {}
        for file in self._imports(script, bases):
            for depth, telling in self._telling(file, bases):
                depths[telling] = min(depth, depths.get(telling, depth))
        depths.pop(script.found.file, None)
        for _, file in sorted((depth, file) for file, depth in depths.items()):
            yield self._module(file)

    def _telling(self, file: str, bases: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
        """Find what says something, with its depth, in a module and in all that it imports."""
        key = (file, bases)
        if key not in self._told:
            depths = {file: 0}
            waiting = [file]
            telling = []
            for current in waiting:
                module = self._module(current)
                facts = module.facts
                if facts.postgres or facts.ports or facts.gone_to or facts.starts:
                    telling.append((depths[current], current))
                for each in self._imports(module, bases):
                    if each not in depths:
                        depths[each] = depths[current] + 1
                        waiting.append(each)
            self._told[key] = tuple(telling)
        return self._told[key]

    def _module(self, file: str) -> Script:
        """Give a module that is imported, read when it was not among what was searched."""
        if file not in self._scripts:
            # To open a named pipe would be to wait for who writes into it.
            is_file = os.path.isfile(file)  # noqa: PTH113 - a Path costs more
            data = read_source(file) if is_file else None
            facts = Facts() if data is None else analyse_python(data, self._marks)
            found = Found(file=file, path=relative_path(file, self._root))
            self._scripts[file] = Script(found=found, facts=facts, metadata=Metadata())
        return self._scripts[file]

    def _bases(self, script: Script) -> tuple[str, ...]:
        """Give the folders from which a script imports."""
        folder = script.folder
        if not script.facts.imports:
            return ()
        if script.facts.changes_path:
            return tuple(parents(folder, self._root))
        if self._folders.is_package(folder):
            return (folder, above_package(folder, self._folders))
        return (folder,)

    def _imports(self, script: Script, bases: tuple[str, ...]) -> tuple[str, ...]:
        """Give the files that a script or module imports from `bases`, itself left out."""
        file = script.found.file
        key = (file, bases)
        if key not in self._imported:
            found = set(self._find(script, bases)) if script.facts.imports else set()
            self._imported[key] = tuple(sorted(found - {file}))
        return self._imported[key]

    def _find(self, script: Script, bases: tuple[str, ...]) -> Iterator[str]:
        for level, name in script.facts.imports:
            if level == 0:
                for base in bases:
                    yield from self._files(base, name)
            else:
                parts = script.folder.split("/")
                yield from self._files("/".join(parts[: 1 - level or None]), name)

    def _files(self, folder: str, name: str) -> Iterator[str]:
        """Give the files that importing a dotted name from a folder runs, as far as they exist."""
        *packages, last = name.split(".")
        for package in packages:
            if package not in self._folders.names(folder):
                return
            folder = f"{folder}/{package}"
            if self._folders.is_package(folder):
                yield f"{folder}/__init__.py"
        names = self._folders.names(folder)
        if f"{last}.py" in names:
            yield f"{folder}/{last}.py"
        if last in names and self._folders.is_package(f"{folder}/{last}"):
            yield f"{folder}/{last}/__init__.py"


def _why_postgres(script: Script, modules: Iterable[Script]) -> str:
    """Say what in a script, or in the modules that it imports, wants PostgreSQL."""
    if script.facts.postgres:
        return script.facts.postgres
    for module in modules:
        if module.facts.postgres:
            beside = module.folder == script.folder
            name = module.found.path.rpartition("/")[2] if beside else module.found.path
            return f"{name} {module.facts.postgres}"
    return ""


def above_package(folder: str, folders: Folders) -> str:
    """Give the folder from which the package in `folder` is imported."""
    while folders.is_package(folder):
        above = os.path.dirname(folder)  # noqa: PTH120 - a Path costs more
        if above == folder:
            break
        folder = above
    return folder


def module_name(script: Script, folders: Folders) -> str:
    """Give the dotted name under which to run a script as a module; empty to run it as a file.

    A script of a package runs as a module when it uses relative imports, or when a module of the
    package has the name of a standard one: run as a file, its folder would come first on
    ``sys.path`` and hide the standard module. It runs as a file nevertheless when it imports
    modules of its folder by their plain names, which only works that way.
    """
    folder = script.folder
    if script.suffix != ".py" or not folders.is_package(folder):
        return ""
    top = above_package(folder, folders)
    parts = [part for part in folder[len(top) :].split("/") if part] + [script.stem]
    if any("." in part for part in parts):
        return ""
    siblings = {
        name.removesuffix(".py") for name in folders.names(folder) if name.endswith(".py")
    } - {"__init__"}
    shadowing = siblings & sys.stdlib_module_names
    plain = {name.partition(".")[0] for level, name in script.facts.imports if level == 0}
    relative = any(level for level, _ in script.facts.imports)
    if relative or (shadowing and not plain & (siblings - shadowing)):
        return ".".join(parts)
    return ""
