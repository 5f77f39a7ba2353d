import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_runner.trees import MARK, remove_tree


def test_empty_full_and_missing_folders_are_gone(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    full = tmp_path / "full"
    (full / "a" / "b").mkdir(parents=True)
    (full / "a" / "b" / "file").write_text("x")
    (full / "link").symlink_to(tmp_path)
    for folder in (empty, full, tmp_path / "missing"):
        assert remove_tree(folder)
        assert not folder.exists()
    assert tmp_path.exists()


def test_a_link_is_left_alone_with_what_it_leads_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "sub").mkdir(parents=True)
    for folder in (target, target / "sub"):
        folder.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(target)
    assert not remove_tree(link)
    assert link.is_symlink()
    assert [path.stat().st_mode & 0o777 for path in (target, target / "sub")] == [0o755, 0o755]


def test_a_name_that_nothing_can_have_is_gone() -> None:
    assert remove_tree(Path("/tmp/e2e-run-\0"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that stays")
def test_what_cannot_be_removed_whole_keeps_its_mark(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for name in (MARK, "a/stays", "goes"):
        (folder / name).write_text("x")
    done = subprocess.run(["chattr", "+i", folder / "a" / "stays"], check=False)
    if done.returncode != 0:
        pytest.skip("this file system has no immutable files")
    try:
        assert not remove_tree(folder)
    finally:
        subprocess.run(["chattr", "-i", folder / "a" / "stays"], check=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MARK, "a"])
    assert remove_tree(folder)
    assert not folder.exists()


_LINKED = """
import os, sys
from pathlib import Path
from e2e_runner.trees import _open_up
root = Path(sys.argv[1])
(root / "locked" / "below").mkdir(parents=True)
(root / "locked" / "link").symlink_to(sys.argv[2])
(root / "locked").chmod(0)
_open_up(root)
print(oct((root / "locked").stat().st_mode), oct((root / "locked" / "below").stat().st_mode))
"""


def test_opening_folders_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _LINKED, str(tmp_path / "root"), str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0o40700 0o40700\n"
    assert target.stat().st_mode & 0o777 == 0o755


_LOCKED = """
import os, sys
from pathlib import Path
from e2e_runner.trees import remove_tree
os.chdir("/")
root = Path(sys.argv[1])
(root / "a" / "b" / "c").mkdir(parents=True)
(root / "a" / "b" / "c" / "file").write_text("x")
for name, mode in (("a/b/c", 0), ("a/b", 0o500), ("a", 0)):
    (root / name).chmod(mode)
print(remove_tree(root))
"""


def test_folders_that_their_owner_may_not_enter_are_removed(tmp_path: Path) -> None:
    from harness import NOBODY, ordinary_python

    root = tmp_path / "locked"
    if os.geteuid() != 0:
        command, who = [sys.executable], {}
    else:
        python = ordinary_python()
        if python is None:
            pytest.skip("no interpreter here can be run by an ordinary user")
        root = Path(f"/tmp/e2e-test-locked-{os.getpid()}")
        root.mkdir()
        os.chown(root, NOBODY, NOBODY)
        command, who = [str(python)], {"user": NOBODY, "group": NOBODY}
    done = subprocess.run(
        [*command, "-c", _LOCKED, str(root)],
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
        **who,  # type: ignore[call-overload]  # user and group, or nothing
    )
    # Its parent is not the ordinary user's to change, so the emptied folder itself may stay.
    assert done.stdout in ("True\n", "False\n")
    assert not (root / "a").exists()
    if root.exists():
        root.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_below_is_never_touched(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    code = (
        "import subprocess, sys; from pathlib import Path; from e2e_runner.trees import remove_tree\n"
        "root = Path(sys.argv[1]); (root / 'a b').mkdir(parents=True)\n"
        "subprocess.run(['mount', '--bind', sys.argv[2], str(root / 'a b')], check=True)\n"
        "print(remove_tree(root))\n"
    )
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code, str(tmp_path / "scratch"), str(precious)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
    assert (precious / "file").read_text() == "mine"
