"""One script with all that its source says, and which scripts are only helpers of others. Pure."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from e2e_runner.discovery.source import Facts, analyse_python, analyse_text, decode
from e2e_runner.discovery.walk import Folders, Found, parents
from e2e_runner.metadata import MAY_HAVE_METADATA, Metadata, read_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file, what its source says, and its metadata."""

    found: Found
    facts: Facts
    metadata: Metadata

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


def read_script(found: Found, data: bytes | None) -> Script:
    """Analyse a script; `data` is None for one that cannot be read."""
    if data is None:
        return Script(found=found, facts=Facts(), metadata=Metadata())
    suffix = os.path.splitext(found.file)[1]  # noqa: PTH122 - a Path costs more
    facts = analyse_python(data) if suffix == ".py" else analyse_text(data)
    metadata = Metadata()
    if MAY_HAVE_METADATA.search(data):
        metadata = read_metadata(decode(data), found.path, suffix)
    return Script(found=found, facts=facts, metadata=metadata)


def find_helpers(scripts: Iterable[Script], root: str, folders: Folders) -> dict[str, str]:
    """Find the files that another script imports; returns the importer's path by helper's file.

    An import is looked for where Python would: beside the script, above its package, and, when the
    script changes ``sys.path``, in every folder up to `root`.
    """
    by_file = {script.found.file: script for script in scripts}
    helpers: dict[str, str] = {}
    for script in sorted(by_file.values(), key=lambda each: each.found.path):
        for file in _imported_files(script, root, folders):
            if file in by_file and file != script.found.file:
                helpers.setdefault(file, script.found.path)
    return helpers


def _imported_files(script: Script, root: str, folders: Folders) -> Iterator[str]:
    folder = script.folder
    bases = [folder]
    if script.facts.imports:
        if script.facts.changes_path:
            bases = list(parents(folder, root))
        elif folders.is_package(folder):
            bases.append(above_package(folder, folders))
    for level, name in script.facts.imports:
        relative = name.replace(".", "/") + ".py"
        if level == 0:
            for base in bases:
                yield f"{base}/{relative}"
        else:
            yield f"{'/'.join(folder.split('/')[: 1 - level or None])}/{relative}"


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
