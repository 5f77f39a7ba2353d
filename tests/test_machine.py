import contextlib
import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from e2e_runner import machine

GIB = 1024**3
MIB = 1024**2
ALLOWED = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Tree:
    """A /proc and control groups of files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mounts: list[str] = []
        self.joined: list[str] = []
        (self.proc / "self").mkdir(parents=True)

    def memory(self, available: int) -> None:
        lines = [
            "MemTotal:  99999999 kB",
            f"MemAvailable:   {available // 1024} kB",
            "HugePages: 0",
        ]
        (self.proc / "meminfo").write_text("\n".join(lines) + "\n")

    def mount(self, where: Path, *, kind: str, options: str = "rw", root: str = "/") -> Path:
        where.mkdir(parents=True, exist_ok=True)
        shown = str(where).replace(" ", r"\040")
        self.mounts.append(
            f"36 31 0:35 {root} {shown} rw,nosuid shared:9 - {kind} {kind} {options}"
        )
        (self.proc / "self" / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        return where

    def join(self, line: str) -> None:
        self.joined.append(line)
        (self.proc / "self" / "cgroup").write_text("\n".join(self.joined) + "\n")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def v2(tree: Tree, tmp_path: Path) -> Path:
    """A process in the group a/b of v2."""
    root = tree.mount(tmp_path / "cgroup", kind="cgroup2")
    tree.join("0::/a/b")
    (root / "a" / "b").mkdir(parents=True)
    return root


# --- processors ----------------------------------------------------------------------------------


def test_no_more_processors_than_the_affinity_allows(tree: Tree) -> None:
    assert machine.processors(tree.proc) == ALLOWED


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", ALLOWED),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("100001 100000", min(2, ALLOWED)),
        ("1000 100000", 1),
        ("99900000 100000", ALLOWED),
        ("", ALLOWED),
        ("what 100000", ALLOWED),
    ],
)
def test_a_quota_is_rounded_up(tree: Tree, v2: Path, quota: str, count: int) -> None:
    write(v2 / "a" / "b", cpu__max=quota)
    assert machine.processors(tree.proc) == count


def test_the_least_quota_of_all_above_counts(tree: Tree, v2: Path) -> None:
    write(v2 / "a" / "b", cpu__max="200000 100000")
    write(v2 / "a", cpu__max="70000 100000")
    write(v2, cpu__max="max 100000")
    assert machine.processors(tree.proc) == 1


def test_a_quota_of_v1(tree: Tree, tmp_path: Path) -> None:
    tree.mount(tmp_path / "memory", kind="cgroup", options="rw,memory")
    root = tree.mount(tmp_path / "cpu", kind="cgroup", options="rw,cpu,cpuacct")
    tree.join("4:memory:/elsewhere")
    tree.join("3:cpu,cpuacct:/box")
    write(root / "box", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert machine.processors(tree.proc) == 1
    write(root / "box", cpu__cfs_quota_us=-1)
    assert machine.processors(tree.proc) == ALLOWED


def test_a_container_without_a_namespace_of_its_own_sees_its_group_as_the_root(
    tree: Tree, tmp_path: Path
) -> None:
    root = tree.mount(tmp_path / "cg", kind="cgroup", options="rw,cpu", root="/docker/4242")
    tree.join("3:cpu:/docker/4242/inner")
    write(root / "inner", cpu__cfs_quota_us=90_000, cpu__cfs_period_us=100_000)
    assert machine.processors(tree.proc) == 1


@pytest.mark.parametrize("group", ["/../../outside", "/docker/other"])
def test_a_group_that_cannot_be_seen_from_here_has_its_root_looked_at(
    tree: Tree, tmp_path: Path, group: str
) -> None:
    root = tree.mount(tmp_path / "cg", kind="cgroup2", root="/docker/4242")
    tree.join(f"0::{group}")
    write(root, cpu__max="10000 100000")
    assert machine.processors(tree.proc) == 1


def test_a_mount_point_with_a_space(tree: Tree, tmp_path: Path) -> None:
    root = tree.mount(tmp_path / "control groups", kind="cgroup2")
    tree.join("0::/")
    write(root, cpu__max="10000 100000")
    assert machine.processors(tree.proc) == 1


# --- memory --------------------------------------------------------------------------------------


def test_what_the_system_has(tree: Tree) -> None:
    tree.memory(3 * GIB)
    assert machine.available_memory(tree.proc) == 3 * GIB


def test_without_such_a_file_the_system_is_asked(tree: Tree) -> None:
    seen = machine.available_memory(tree.proc)
    assert seen is not None
    assert 0 < seen <= psutil.virtual_memory().total


def test_nothing_is_known_where_nothing_tells(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError

    monkeypatch.setattr(psutil, "virtual_memory", refused)
    assert machine.available_memory(tree.proc) is None


def test_what_a_limit_leaves(tree: Tree, v2: Path) -> None:
    tree.memory(64 * GIB)
    write(v2 / "a" / "b", memory__max=GIB, memory__current=700 * MIB)
    write(v2 / "a" / "b", memory__stat=f"anon 5\ninactive_file {200 * MIB}\nactive_file 7")
    assert machine.available_memory(tree.proc) == GIB - 500 * MIB


def test_the_least_that_any_level_leaves_counts(tree: Tree, v2: Path) -> None:
    tree.memory(64 * GIB)
    write(v2 / "a" / "b", memory__max=4 * GIB, memory__current=GIB)
    write(v2 / "a", memory__max="max", memory__high=2 * GIB, memory__current=1500 * MIB)
    assert machine.available_memory(tree.proc) == 2 * GIB - 1500 * MIB
    tree.memory(100 * MIB)
    assert machine.available_memory(tree.proc) == 100 * MIB


def test_a_group_over_its_limit_leaves_nothing(tree: Tree, v2: Path) -> None:
    tree.memory(GIB)
    write(v2 / "a" / "b", memory__max=GIB, memory__current=GIB + 4096)
    assert machine.available_memory(tree.proc) == 0


@pytest.mark.parametrize(
    "files",
    [
        {"memory__max": "max", "memory__current": 5},
        {"memory__max": GIB},
        {"memory__max": "", "memory__current": ""},
        {"memory__limit_in_bytes": 9223372036854771712, "memory__usage_in_bytes": 5},
    ],
)
def test_no_limit_and_half_a_limit_leave_what_the_system_has(
    tree: Tree, v2: Path, files: dict[str, object]
) -> None:
    tree.memory(3 * GIB)
    write(v2 / "a" / "b", **files)
    assert machine.available_memory(tree.proc) == 3 * GIB


def test_a_limit_of_v1(tree: Tree, tmp_path: Path) -> None:
    root = tree.mount(tmp_path / "memory", kind="cgroup", options="rw,memory")
    tree.join("4:memory:/box")
    tree.memory(3 * GIB)
    write(root / "box", memory__limit_in_bytes=GIB, memory__usage_in_bytes=700 * MIB)
    write(root / "box", memory__stat=f"inactive_file 1\ntotal_inactive_file {100 * MIB}")
    assert machine.available_memory(tree.proc) == GIB - 600 * MIB


# --- real ones -----------------------------------------------------------------------------------


ASK = """
import json
from e2e_runner import machine
print(json.dumps([machine.processors(), machine.available_memory()]))
"""


def asked(*, join: Path | None = None) -> tuple[int, int]:
    """Give what a process sees, which enters a control group before it looks."""
    enter = "" if join is None else f"open({str(join / 'cgroup.procs')!r}, 'w').write('0')\n"
    done = subprocess.run(
        [sys.executable, "-c", enter + ASK], check=True, stdout=subprocess.PIPE, timeout=60
    )
    count, memory = json.loads(done.stdout)
    return count, memory


@contextlib.contextmanager
def child_group(controller: str, *files: str) -> Iterator[Path]:
    """Make a control group below this process's own, one that has these files; else skip."""
    for parent in machine._groups(controller, Path("/proc")):
        folder = parent / f"e2e-run-test-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if all(os.access(folder / name, os.W_OK) for name in (*files, "cgroup.procs")):
                yield folder
                return
        finally:
            folder.rmdir()
    pytest.skip(f"no control group with {controller} can be made here")


def test_this_machine() -> None:
    count, memory = asked()
    assert 1 <= count <= ALLOWED
    assert 0 < memory <= psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="no affinity")
def test_a_real_affinity() -> None:
    processor = min(os.sched_getaffinity(0))
    pinned = f"import os\nos.sched_setaffinity(0, [{processor}])\n"
    done = subprocess.run(
        [sys.executable, "-c", pinned + ASK], check=True, stdout=subprocess.PIPE, timeout=60
    )
    assert json.loads(done.stdout)[0] == 1


def real_quota(version: str) -> tuple[Callable[[Path, int], None], tuple[str, ...]]:
    def v1(folder: Path, quota: int) -> None:
        (folder / "cpu.cfs_period_us").write_text("100000")
        (folder / "cpu.cfs_quota_us").write_text(str(quota))

    def v2(folder: Path, quota: int) -> None:
        (folder / "cpu.max").write_text(f"{quota} 100000")

    if version == "v1":
        return v1, ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return v2, ("cpu.max",)


@pytest.mark.skipif(sys.platform != "linux", reason="no control groups")
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("quota", [40_000, 130_000])
def test_a_real_quota(version: str, quota: int) -> None:
    set_quota, files = real_quota(version)
    with child_group("cpu", *files) as folder:
        set_quota(folder, quota)
        assert asked(join=folder)[0] == min(math.ceil(quota / 100_000), asked()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="no control groups")
@pytest.mark.parametrize("file", ["memory.limit_in_bytes", "memory.max"])
def test_a_real_memory_limit(file: str) -> None:
    with child_group("memory", file) as folder:
        (folder / file).write_text(str(300 * MIB))
        # The process itself takes some of it, file cache that it has just read included.
        assert 150 * MIB < asked(join=folder)[1] < 300 * MIB
