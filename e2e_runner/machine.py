"""What there is to run on: processors and memory, as far as this process may use them.

A container's limits count, and those of any other control group, on every level up to the root.
"""

import functools
import math
import os
import re
import resource
from pathlib import Path, PurePosixPath

_MANY = 1 << 20
_PROC = Path("/proc")
_NO_LIMIT = 2**62  # v1 has no word for it, but a number near the largest


def processors(proc: Path = _PROC) -> int:
    """Count the processors that this process may use, at least one; part of one counts as one."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _groups("cpu", proc)]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def descriptors() -> int:
    """Count the files that this process may have open: as many as it may allow itself."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (
        1 << 63
    )  # without a limit: a great many


def available_memory(proc: Path = _PROC) -> int | None:
    """Give the bytes that can be used before the system swaps or kills; None: not known."""
    found = [_system_memory(proc), *(_memory_left(folder) for folder in _groups("memory", proc))]
    return min((each for each in found if each is not None), default=None)


def _system_memory(proc: Path) -> int | None:
    kilobytes = _entries(proc / "meminfo").get("MemAvailable:")
    if kilobytes is not None:
        return kilobytes * 1024
    import psutil  # which takes its time to load, and knows no more where there is such a file

    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return None


# --- control groups ------------------------------------------------------------------------------


def _cpu_quota(folder: Path) -> float | None:
    """Give how many processors a group may keep busy; None: no limit."""
    match _text(folder / "cpu.max").split():
        case [quota, period] if (limit := _number(quota)) is not None:
            return limit / (_number(period) or 100_000)
    quota_v1 = _number(_text(folder / "cpu.cfs_quota_us"))
    period_v1 = _number(_text(folder / "cpu.cfs_period_us"))
    if quota_v1 is None or not period_v1 or quota_v1 < 0:
        return None
    return quota_v1 / period_v1


def _memory_left(folder: Path) -> int | None:
    """Give the bytes that a group may still take; None: no limit.

    File cache that has not been used for a while makes room when it is needed.
    """
    limits = [
        limit
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (limit := _number(_text(folder / name))) is not None and limit < _NO_LIMIT
    ]
    if not limits:
        return None
    used = _number(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes"))
    if used is None:
        return None
    stat = _entries(folder / "memory.stat")
    cache = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return max(0, min(limits) - max(0, used - cache))


@functools.cache
def _groups(controller: str, proc: Path) -> tuple[Path, ...]:
    """Find the folders of this process's control groups, v1 and v2, with all those above them."""
    joined = {}  # controller -> the group in its own hierarchy; "" is that of v2
    for line in _text(proc / "self" / "cgroup").splitlines():  # "4:cpu,cpuacct:/path", "0::/path"
        names, _, path = line.partition(":")[2].partition(":")
        joined.update(dict.fromkeys(names.split(","), path))
    folders: list[Path] = []
    for line in _text(proc / "self" / "mountinfo").splitlines():
        place, _, system = line.partition(" - ")
        match place.split(), system.split():
            case [_, _, _, root, mount, *_], ["cgroup2", *_] if "" in joined:
                folders += _up_from(_below(_unescaped(root), joined[""]), Path(_unescaped(mount)))
            case [_, _, _, root, mount, *_], ["cgroup", *_, options] if (
                controller in joined and controller in options.split(",")
            ):
                inside = _below(_unescaped(root), joined[controller])
                folders += _up_from(inside, Path(_unescaped(mount)))
    return tuple(dict.fromkeys(folders))


def _below(root: str, group: str) -> PurePosixPath:
    """Give the way to a group from what is mounted; from outside a container's it cannot be seen."""
    path = PurePosixPath(group)
    if ".." in path.parts or not path.is_relative_to(root):
        return PurePosixPath()
    return path.relative_to(root)


def _up_from(inside: PurePosixPath, mount: Path) -> list[Path]:
    return [mount / each for each in (inside, *inside.parents)]


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


# --- files that may be missing -------------------------------------------------------------------


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Read one whole number; "max", nothing and the like are None."""
    try:
        return int(text)
    except ValueError:
        return None


def _entries(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    found = {}
    for line in _text(file).splitlines():
        match line.split():
            case [name, text, *_] if (value := _number(text)) is not None:
                found[name] = value
    return found
