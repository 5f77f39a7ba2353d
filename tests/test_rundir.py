import json
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_runner.errors import SetupError
from e2e_runner.rundir import dead_runs, forget, is_live, open_run, prune


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
