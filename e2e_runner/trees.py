"""Removing the temporary folders of scripts, whatever the scripts did to them.

The standard library alone: the spawner process uses this too.
"""

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

MARK = ".e2e-run-owner"  # a file that says whose a folder is, and therefore goes last


def remove_tree(folder: Path) -> bool:
    """Remove a folder with all that is in it; tell whether it is gone.

    Folders that their owner may not enter or change are opened first. What is no folder, as a symbolic
    link, is left alone, and so is a folder with something mounted below it: what is mounted there may
    be anybody's. What cannot be removed whole keeps its mark (see `rundir`).
    """
    try:
        folder.rmdir()  # empty, as a rule
    except (FileNotFoundError, ValueError):  # there is nothing with a NUL in its name
        return True
    except OSError:
        pass
    else:
        return True
    if not is_real_folder(folder) or _has_mounts(folder):
        return False
    if not _empty(folder):
        _open_up(folder)
        _empty(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not os.path.lexists(folder)


def is_real_folder(path: Path) -> bool:
    """Tell whether there is a folder of this name, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _empty(folder: Path) -> bool:
    """Remove what lies in a folder, its mark last; False when something stays."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != MARK:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108 - os.scandir gives strings
        if set(os.listdir(folder)) <= {MARK}:  # noqa: PTH208 - same
            (folder / MARK).unlink(missing_ok=True)
            return True
    return False


def _open_up(folder: Path) -> None:
    """Let the owner into a folder and all those below it, from the top."""
    with contextlib.suppress(OSError):
        _let_in(folder, None)
        for _, names, _, parent in os.fwalk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    _let_in(name, parent)


def _let_in(folder: str | Path, parent: int | None) -> None:
    """Let the owner into a folder below the open folder `parent`; raises OSError.

    Never through a link, which whoever may write to `parent` can put there at any moment.
    """
    if sys.platform != "linux":
        os.chmod(folder, 0o700, dir_fd=parent, follow_symlinks=False)
        return
    # Before glibc 2.32 the above is not to be had.
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder, flags, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)  # noqa: PTH101 - no path of a file
    finally:
        os.close(fd)


def _has_mounts(folder: Path) -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not Linux
        return any(os.path.ismount(current) for current, _, _ in os.walk(folder))
    within = os.fsencode(folder.resolve()) + b"/"
    # The fifth field is the mount point, with blanks and the like as octal escapes.
    return any(
        line.split(b" ", 5)[4].decode("unicode_escape").encode("latin-1").startswith(within)
        for line in mounts
    )
