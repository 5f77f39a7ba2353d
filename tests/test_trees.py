import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_runner.trees import remove_tree


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
