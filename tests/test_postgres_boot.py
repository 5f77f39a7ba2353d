"""The start of a program as somebody else, and the images of clusters that are unpacked for it."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import IS_ROOT, NOBODY

from e2e_runner.postgres import boot, cluster
from e2e_runner.postgres.image import NoImageError, pack, read_head, unpack

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
PASSWORD = "5ec2e7"  # noqa: S105 - of nothing
WHO = ["/bin/sh", "-c", "id -u; id -g; id -G; pwd; umask"]


def run(command: tuple[str, ...], *, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@needs_root
def test_root_becomes_somebody_else_altogether() -> None:
    code, said, _ = run(boot.boot_command(WHO, identity="65534:65534", folder=Path("/usr")))
    assert (code, said.split()) == (0, ["65534", "65534", "65534", "/usr", "0077"])


def test_in_a_namespace_the_caller_is_nobody_and_keeps_what_it_has(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    words = ["/bin/sh", "-c", "id -u; touch made"]
    code, said, complaint = run(boot.boot_command(words, identity="namespace", folder=tmp_path))
    if code == boot.NO_IDENTITY:
        pytest.skip(complaint)
    assert (code, said.split()) == (0, [str(NOBODY)])
    assert (tmp_path / "made").stat().st_uid == os.geteuid()


@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
def test_refused_namespaces_are_told() -> None:
    none_left = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", none_left, "sh")
    if run(("true",), prefix=prefix)[0] != 0:
        pytest.skip("no user namespace can be had to begin with")
    command = boot.boot_command(["/bin/true"], identity="namespace", folder=Path("/"))
    code, _, complaint = run(command, prefix=prefix)
    assert code == boot.NO_IDENTITY
    assert "user namespaces are refused" in complaint


def test_what_fails_has_a_code_and_words(tmp_path: Path) -> None:
    here = tmp_path
    (here / "data").mkdir()
    (here / "odd").write_text("no image")
    good = ["/bin/true"]
    for code, words, command in (
        (boot.NO_FOLDER, "gone", boot.boot_command(good, identity="self", folder=here / "gone")),
        (boot.NO_PROGRAM, "none", boot.boot_command(["/none"], identity="self", folder=here)),
        (
            boot.NO_COPY,
            "No such file",
            boot.boot_command(good, identity="self", folder=here, image=here / "gone"),
        ),
        (
            boot.NO_COPY,
            "no head",
            boot.boot_command(good, identity="self", folder=here, image=here / "odd"),
        ),
    ):
        seen, _, complaint = run(command)
        assert seen == code, complaint
        assert words in complaint


@needs_root
def test_a_program_out_of_reach_is_told(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "true").symlink_to("/bin/true")
    command = boot.boot_command([str(hidden / "true")], identity="65534:65534", folder=Path("/"))
    code, _, complaint = run(command)
    assert code == boot.NO_PROGRAM
    assert "Permission denied" in complaint


# --- images --------------------------------------------------------------------------------------


def packed(tmp_path: Path) -> Path:
    data = tmp_path / "cluster"
    (data / "base" / "1").mkdir(parents=True)
    (data / "empty folder").mkdir()
    (data / "PG_VERSION").write_text("15\n")
    (data / "base" / "1" / "empty").touch()
    (data / "base" / "1" / "big").write_bytes(os.urandom(3 << 20))
    image = tmp_path / "image"
    with image.open("wb") as output:
        pack(str(data), output, version="15.18", password=PASSWORD)
    return image


def test_what_is_unpacked_is_what_was_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # unpacking enters the folder
    image = packed(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    with image.open("rb") as source:
        assert read_head(source)[:2] == ("15.18", PASSWORD)
        source.seek(0)
        unpack(source, str(copy))
    assert subprocess.run(["diff", "-r", tmp_path / "cluster", copy], check=False).returncode == 0
    for made in copy.rglob("*"):
        assert made.stat().st_mode & 0o777 == (0o700 if made.is_dir() else 0o600)


def test_a_damaged_image_is_noticed(tmp_path: Path) -> None:
    image = packed(tmp_path)
    whole = image.read_bytes()
    for damaged in (b"", whole[:10], whole[:200], whole[:-1], whole + b"x", bytes(len(whole))):
        image.write_bytes(damaged)
        with image.open("rb") as source, pytest.raises(NoImageError):
            read_head(source)


def test_a_cluster_that_reaches_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster" / "pg_tblspc").mkdir(parents=True)
    (tmp_path / "cluster" / "pg_tblspc" / "16384").symlink_to(tmp_path)
    with (
        (tmp_path / "image").open("wb") as output,
        pytest.raises(NoImageError, match="tablespaces"),
    ):
        pack(str(tmp_path / "cluster"), output, version="15.18", password=PASSWORD)


class Swapping(io.BufferedWriter):
    """Lets the cluster's owner act between the listing of the cluster and the reading of its files."""

    act: Callable[[], object]

    def write(self, data: Any) -> int:
        self.act()
        self.act = lambda: None
        return super().write(data)


@pytest.mark.parametrize("swapped", ["base/1/big", "base/1", "base", "PG_VERSION"])
def test_what_is_replaced_by_a_link_meanwhile_is_not_read(tmp_path: Path, swapped: str) -> None:
    packed(tmp_path)
    path = tmp_path / "cluster" / swapped

    def swap() -> None:
        elsewhere = tmp_path / "elsewhere"  # of the same sizes, so that nothing else tells
        path.rename(elsewhere)
        path.symlink_to(elsewhere)

    with Swapping(io.FileIO(tmp_path / "image", "w")) as output:
        output.act = swap
        with pytest.raises(OSError, match=path.name):
            pack(str(tmp_path / "cluster"), output, version="15.18", password=PASSWORD)


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_settings_are_added_to_no_file_but_the_clusters_own(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    other.write_text("mine\n")
    data = tmp_path / "data"
    data.mkdir()
    match kind:
        case "link":
            (data / "postgresql.conf").symlink_to(other)
        case "hard link":
            (data / "postgresql.conf").hardlink_to(other)
        case _:
            os.mkfifo(data / "postgresql.conf")
    with pytest.raises(OSError, match=r"postgresql\.conf"):
        cluster.add_settings(data)
    assert other.read_text() == "mine\n"
