import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from e2e_runner.errors import SetupError
from e2e_runner.rundir import dead_runs, forget, is_live, new_run_id, open_run, prune
from e2e_runner.trees import MARK


def test_a_run_is_live_exactly_while_it_is_open(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    assert not is_live(state, "1")
    with open_run(state, "1") as run:
        assert is_live(state, "1")
        assert run.scratch.is_dir()
        assert dead_runs(state) == ()
        assert (state / ".gitignore").read_text() == "*\n"
    assert not is_live(state, "1")
    assert not run.scratch.exists()
    assert dead_runs(state) == ()


@pytest.mark.parametrize("run_id", ["", "..", ".", "../../etc", "no-such"])
def test_odd_ids_are_never_live(tmp_path: Path, run_id: str) -> None:
    assert not is_live(tmp_path, run_id)


def test_a_run_that_was_killed_is_found_and_its_scratch_removed(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    code = (
        "import sys, os, signal; from pathlib import Path; from e2e_runner.rundir import open_run\n"
        "with open_run(Path(sys.argv[1]), 'dead') as run:\n"
        "    (run.scratch / 'file').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(state)], check=False)
    assert done.returncode == -9
    (dead,) = dead_runs(state)
    assert dead.id == "dead"
    assert dead.scratch is not None
    assert (dead.scratch / "file").exists()
    forget(state, dead)
    assert not dead.scratch.exists()
    assert dead_runs(state) == ()


def test_a_record_that_names_a_strange_folder_removes_nothing(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    precious = tmp_path / "precious"
    precious.mkdir()
    (state / "runs" / "1" / ".run").mkdir(parents=True)
    (state / "runs" / "1" / ".run" / "record.json").write_text(
        json.dumps({"scratch": str(precious)})
    )
    (state / "runs" / "2" / ".run").mkdir(parents=True)
    (state / "runs" / "2" / ".run" / "record.json").write_text('{"scra')
    for dead in dead_runs(state):
        forget(state, dead)
    assert precious.is_dir()
    assert dead_runs(state) == ()


def forged(state: Path, record: object) -> Path:
    """Make the record of a dead run, as a repository may bring one; gives the run's folder."""
    run = state / "runs" / "1"
    (run / ".run").mkdir(parents=True, exist_ok=True)
    (run / ".run" / "record.json").write_text(json.dumps(record))
    return run


def forget_all(state: Path) -> None:
    for dead in dead_runs(state):
        forget(state, dead)


def test_a_forged_record_removes_nothing_whatever_its_name(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    notes = tmp_path / "home" / "e2e-run-notes"
    notes.mkdir(parents=True)
    (notes / "thesis.txt").write_text("x")
    empty = tmp_path / "e2e-run-empty"
    empty.mkdir()
    forged(state, {"scratch": str(notes), "folders": [str(empty)]})
    forget_all(state)
    assert (notes / "thesis.txt").exists()
    assert empty.exists()
    assert dead_runs(state) == ()


def test_the_mark_of_another_run_is_none_for_this_one(tmp_path: Path) -> None:
    state, copy = tmp_path / "a" / ".e2e-run", tmp_path / "b" / ".e2e-run"
    with open_run(state, "1") as run:
        run.note_folder(tmp_path / "e2e-run-1")
        (tmp_path / "e2e-run-1").mkdir()
        run.mark_folder(tmp_path / "e2e-run-1")
        # The copy of a project has no live run, whatever is true of the project.
        shutil.copytree(state, copy)
        forget_all(copy)
        assert run.scratch.is_dir()
        assert (tmp_path / "e2e-run-1").is_dir()


def test_a_link_of_the_name_is_not_followed(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    target = tmp_path / "e2e-run-target"
    (target / "sub").mkdir(parents=True)
    link = tmp_path / "e2e-run-link"
    link.symlink_to(target)
    run = forged(state, {"folders": [str(link)]})
    (target / MARK).write_text(f"{run}\n")
    for folder in (target, target / "sub"):
        folder.chmod(0o755)
    forget_all(state)
    assert [path.name for path in sorted(target.iterdir())] == [MARK, "sub"]
    assert [path.stat().st_mode & 0o777 for path in (target, target / "sub")] == [0o755, 0o755]


@pytest.mark.parametrize(
    "record",
    [
        {"folders": [1, None, "relative", "\0e2e-run-", "/tmp/e2e-run-\0x"]},
        {"folders": "abc", "scratch": 5, "cgroup": ["/"]},
        {"scratch": "/tmp/e2e-run-\0x", "cgroup": "/\0"},
        [],
    ],
)
def test_a_record_of_anything_is_forgotten(tmp_path: Path, record: object) -> None:
    forged(tmp_path, record)
    (dead,) = dead_runs(tmp_path)
    assert (dead.scratch, dead.cgroup, dead.folders) == (None, None, ())
    forget_all(tmp_path)
    assert dead_runs(tmp_path) == ()


def test_pruning_keeps_the_newest_and_the_live(tmp_path: Path) -> None:
    state = tmp_path / ".e2e-run"
    with open_run(state, "1"):
        for run_id in ("2", "3", "4"):
            with open_run(state, run_id):
                pass
        prune(state, 2)
        assert sorted(path.name for path in (state / "runs").iterdir()) == ["1", "3", "4"]


def test_logs_stand_at_the_path_of_the_example(tmp_path: Path) -> None:
    with open_run(tmp_path / ".e2e-run", "1") as run:
        logs = run.folder
        assert run.log_file("examples/a b.py") == logs / "examples" / "a b.py.log"
        assert run.log_file("../x.py") == logs / "__" / "x.py.log"
        assert run.log_file("/abs/x.py") == logs / "abs" / "x.py.log"
        long = run.log_file("é" * 120 + ".py")
        long.write_text("fits")
        assert long != run.log_file("é" * 120 + "2.py")


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / ".e2e-run").write_text("a file")
    with (
        pytest.raises(SetupError, match=r"state folder .* cannot be used"),
        open_run(tmp_path / ".e2e-run", "1"),
    ):
        pass


def test_folders_outside_are_noted_before_they_are_made_and_removed_by_a_later_run(
    tmp_path: Path,
) -> None:
    state = tmp_path / ".e2e-run"
    code = (
        "import sys, os, signal; from pathlib import Path; from e2e_runner.rundir import open_run\n"
        "with open_run(Path(sys.argv[1]), 'dead') as run:\n"
        "    run.note_cgroup(Path('/no/such/cgroup'))\n"
        "    for name in ('e2e-run-never-made', 'e2e-run-made', 'other'):\n"
        "        run.note_folder(Path(sys.argv[2]) / name)\n"
        "    for name in ('e2e-run-made', 'other'):\n"
        "        (Path(sys.argv[2]) / name / 'sub').mkdir(parents=True)\n"
        "        run.mark_folder(Path(sys.argv[2]) / name)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(state), str(tmp_path)], check=False)
    assert done.returncode == -9
    (dead,) = dead_runs(state)
    assert dead.cgroup == Path("/no/such/cgroup")
    assert [folder.name for folder in dead.folders] == [
        *("e2e-run-never-made", "e2e-run-made", "other")
    ]
    forget(state, dead)
    assert not (tmp_path / "e2e-run-made").exists()
    assert (tmp_path / "other").exists()  # no name of ours
    assert dead_runs(state) == ()


def test_noted_folders_are_removed_at_the_end_of_the_run(tmp_path: Path) -> None:
    with open_run(tmp_path / ".e2e-run", "1") as run:
        run.note_folder(tmp_path / "e2e-run-1")
        (tmp_path / "e2e-run-1" / "sub").mkdir(parents=True)
        run.mark_folder(tmp_path / "e2e-run-1")
    assert not (tmp_path / "e2e-run-1").exists()
    assert dead_runs(tmp_path / ".e2e-run") == ()


def test_a_state_folder_that_somebody_removed_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    with open_run(tmp_path / ".e2e-run", "1") as run:
        shutil.rmtree(tmp_path / ".e2e-run")
    assert not run.scratch.exists()


def test_a_state_folder_that_is_being_removed_holds_no_dead_runs(tmp_path: Path) -> None:
    for number in range(200):
        state = tmp_path / str(number)
        for run in range(5):
            (state / "runs" / str(run) / ".run").mkdir(parents=True)
        removing = threading.Thread(target=shutil.rmtree, args=(state,))
        removing.start()
        while removing.is_alive():
            assert dead_runs(state) == ()
        removing.join()


def test_ids_of_runs_sort_by_time() -> None:
    ids = [new_run_id(now) for now in (0.0, 0.25, 0.251, 1.0, 86_400.0, 1_700_000_000.0)]
    assert ids == sorted(ids)
    assert ids[0].startswith("19700101-000000-")
    assert len(set(ids)) == 6
