"""Removing the temporary folders of scripts, whatever the scripts did to them.

The standard library alone: the spawner process uses this too.
"""

import contextlib
import os
import shutil
from pathlib import Path


def remove_tree(folder: Path) -> bool:
    """Remove a folder with all that is in it; tell whether it is gone.

    Folders that their owner may not enter or change are opened first. A folder with something mounted
    below it is left alone: what is mounted there may be anybody's.
    """
    try:
        folder.rmdir()  # empty, as a rule
    except FileNotFoundError:
        return True
    except OSError:
        pass
    else:
        return True
    if _has_mounts(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        _open_up(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return not os.path.lexists(folder)


def _open_up(folder: Path) -> None:
    """Let the owner into a folder and all those below it, from the top."""
    waiting = [str(folder)]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(current, 0o700)  # noqa: PTH101 - os.scandir gives strings
            with os.scandir(current) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]


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
