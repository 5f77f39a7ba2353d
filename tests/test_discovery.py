import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2e_runner.cli.list_ import list_command
from e2e_runner.config import resolve
from e2e_runner.discovery import make_plan
from e2e_runner.discovery.rules import refuse_file
from e2e_runner.model import Example, Origin, Plan, Source, TcpProbe

RUNS = "print(1)\n"


class Project:
    """A folder of scripts, written from a mapping of path to text."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, str], config: str = "") -> "Project":
        (self.root / "e2e-run.toml").write_text(config)
        for path, text in files.items():
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return self

    def plan(self, *paths: str, environ: dict[str, str] | None = None, **flags: object) -> Plan:
        return make_plan(resolve(flags, paths, environ or {}, self.root, executable=sys.executable))

    def example(self, path: str) -> Example:
        (example,) = self.plan(path).examples
        return example


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    root.mkdir()
    return Project(root)


def _paths(plan: Plan) -> list[str]:
    return [example.path for example in plan.examples]


def _reasons(plan: Plan) -> dict[str, str]:
    return {each.path: each.reason for each in plan.not_examples}


def _metadata(*lines: str, body: str = RUNS) -> str:
    block = "\n".join(["# /// script", "# [tool.e2e-run]", *(f"# {line}" for line in lines)])
    return f"{block}\n# ///\n{body}"


# --- what is an example --------------------------------------------------------------------------


def test_names_that_are_never_examples_are_listed_with_the_reason(project: Project) -> None:
    names = ["__init__.py", "_x.py", ".x.py", "conftest.py", "setup.py", "test_a.py", "a_test.py"]
    folders = [".venv", "node_modules", "__pycache__", "build", ".hidden", "migrations", "env"]
    project.write(
        {f"examples/{name}": RUNS for name in [*names, "run_all.py", "run_all_fast.py", "ok.py"]}
        | {f"examples/{name}/x.py": RUNS for name in folders}
        | {"examples/env/pyvenv.cfg": "", "examples/readme.md": "", "examples/deep/er/ok.py": RUNS}
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/deep/er/ok.py", "examples/ok.py"]
    assert _reasons(plan) == {
        "examples/.hidden/": "hidden folder",
        "examples/.venv/": "hidden folder",
        "examples/.x.py": "hidden file",
        "examples/__init__.py": "marks a package",
        "examples/__pycache__/": "compiled Python",
        "examples/_x.py": "name begins with _",
        "examples/a_test.py": "test of a test framework",
        "examples/build/": "build output",
        "examples/conftest.py": "belongs to pytest",
        "examples/env/": "virtual environment",
        "examples/migrations/": "database migrations",
        "examples/node_modules/": "installed packages",
        "examples/run_all.py": "another runner of this folder",
        "examples/run_all_fast.py": "another runner of this folder",
        "examples/setup.py": "installs a package",
        "examples/test_a.py": "test of a test framework",
    }


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_every_name_is_judged(name: str) -> None:
    assert bool(refuse_file(name)) or not name.startswith((".", "_"))


def test_a_file_given_by_name_always_runs(project: Project) -> None:
    names = ["test_a.py", "_x.py", "run_all.py", ".x.py", "defs.py"]
    project.write(dict.fromkeys(names, "x = 1\n"), "exclude = '*.py'")
    assert _paths(project.plan(*names)) == sorted(names)


def test_a_folder_given_by_name_is_searched_whatever_it_is_called(project: Project) -> None:
    project.write(
        {"build/a.py": RUNS, "build/draft_b.py": RUNS, "old/c.py": RUNS, "old/.d/d.py": RUNS},
        "exclude = ['old', 'old/**', 'draft_*.py']",
    )
    assert _paths(project.plan("build", "old", "old/.d")) == [
        "build/a.py",
        "old/.d/d.py",
        "old/c.py",
    ]
    plan = project.plan(".")
    assert _paths(plan) == []
    assert _reasons(plan) == {"build/": "build output", "old/": "excluded by old"}
    plan = project.plan("build", ".")
    assert _paths(plan) == ["build/a.py"]
    assert _reasons(plan) == {
        "build/draft_b.py": "excluded by draft_*.py",
        "old/": "excluded by old",
    }


def test_helpers_are_what_others_import(project: Project) -> None:
    project.write(
        {
            "examples/a.py": "import demo_data\nfrom pkg import part\nprint(demo_data)\n",
            "examples/demo_data.py": "print('loading')\n",
            "examples/pkg/__init__.py": "",
            "examples/pkg/part.py": "from . import inner\nprint(1)\n",
            "examples/pkg/inner.py": "print(2)\n",
            "examples/guarded.py": "if __name__ == '__main__':\n    print(1)\n",
            "examples/b.py": "import guarded\nimport b\nfrom tested import x\nprint(1)\n",
            "examples/test_c.py": "import only_tested\n",
            "examples/only_tested.py": RUNS,
            "examples/_start.py": "import started\n",
            "examples/started.py": RUNS,
            "examples/deep/d.py": "import sys\nsys.path.append('..')\nimport shared\nprint(1)\n",
            "examples/deep/e.py": "import far\nprint(1)\n",
            "examples/far.py": RUNS,
            "examples/shared.py": RUNS,
            "examples/server.py": "uvicorn.run('app_module:app')\n",
            "examples/app_module.py": "app.include_router(x)\n",
            "examples/declared.py": _metadata("timeout = 3"),
            "examples/z.py": "import declared\nprint(1)\n",
        }
    )
    plan = project.plan()
    assert _paths(plan) == [
        f"examples/{name}.py"
        for name in [
            "a",
            "b",
            "declared",
            "deep/d",
            "deep/e",
            "far",
            "guarded",
            "only_tested",
            "server",
            "z",
        ]
    ]
    reasons = _reasons(plan)
    assert reasons["examples/demo_data.py"] == "imported by a.py"
    assert reasons["examples/pkg/part.py"] == "imported by examples/a.py"
    assert reasons["examples/pkg/inner.py"] == "imported by part.py"
    assert reasons["examples/started.py"] == "imported by _start.py"
    assert reasons["examples/shared.py"] == "imported by examples/deep/d.py"
    assert reasons["examples/app_module.py"] == "imported by server.py"


def test_an_excluded_importer_still_makes_a_helper(project: Project) -> None:
    project.write({"examples/a.py": "import help_\nprint(1)\n", "examples/help_.py": RUNS})
    plan = project.plan(exclude=("a.py",))
    assert _paths(plan) == []
    assert _reasons(plan) == {
        "examples/a.py": "excluded by a.py",
        "examples/help_.py": "imported by a.py",
    }


def test_definitions_only_files_say_nothing(project: Project) -> None:
    project.write(
        {
            "examples/defs.py": "import os\nX = 1\ndef f(): ...\n",
            "examples/empty.py": "",
            "examples/declared.py": _metadata("timeout = 3", body="X = 1\n"),
        }
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/declared.py"]
    assert _reasons(plan) == {
        "examples/defs.py": "only imports, definitions and plain assignments",
        "examples/empty.py": "has no statements",
    }


def test_other_languages_run_when_included_or_named(project: Project) -> None:
    project.write(
        {"examples/a.sh": "echo 1\n", "examples/b.js": "1\n", "examples/c": "#!/bin/sh\n"}
        | {"examples/d.foo": "x"},
    )
    (project.root / "examples" / "c").chmod(0o755)
    file = str(project.root / "examples" / "a.sh")
    assert _paths(project.plan()) == []
    example = project.example("examples/a.sh")
    assert example.argv == ("bash", file)
    assert project.example("examples/b.js").argv[0] == "node"
    assert project.example("examples/c").argv == (str(project.root / "examples" / "c"),)
    (problem,) = project.example("examples/d.foo").problems
    assert problem.message == (
        "examples/d.foo:1: interpreter: none is known for files with the suffix .foo; accepted: "
        '`interpreters = { ".foo" = "COMMAND" }` in the configuration, `interpreter` in an '
        "override, an executable file, or a suffix of .bash, .js, .mjs, .php, .pl, .py, .rb, .sh"
    )
    project.write({}, "include = ['*.sh']\ninterpreters = { '.sh' = './tools/sh -e' }\n")
    (example,) = project.plan().examples
    assert example.argv == (f"{project.root}/tools/sh", "-e", file)


# --- the file system -----------------------------------------------------------------------------


def test_symlinks_are_followed_once_and_loops_end(project: Project, tmp_path: Path) -> None:
    project.write({"examples/real/a.py": RUNS, "examples/b.py": RUNS})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.py").write_text(RUNS)
    examples = project.root / "examples"
    (examples / "a_first").symlink_to("real")
    (examples / "real" / "loop").symlink_to("..")
    (examples / "alias.py").symlink_to("b.py")
    (examples / "ext").symlink_to(outside)
    (examples / "self").symlink_to("self")
    (examples / "self.py").symlink_to("self.py")
    (examples / "broken.py").symlink_to("gone.py")
    plan = project.plan()
    assert _paths(plan) == [
        "examples/b.py",
        "examples/broken.py",
        "examples/ext/o.py",
        "examples/real/a.py",
        "examples/self.py",
    ]
    assert _reasons(plan) == {
        "examples/a_first/": "symlink to a folder that is searched already",
        "examples/alias.py": "the same file as examples/b.py",
        "examples/real/loop/": "symlink to a folder that is searched already",
    }


def test_the_same_file_reached_twice_runs_once(project: Project) -> None:
    project.write({"examples/a.py": RUNS, "examples/deep/b.py": RUNS})
    (project.root / "link.py").symlink_to("examples/a.py")
    (project.root / "also").symlink_to("examples")
    plan = project.plan(
        "examples", "examples/deep", "./examples/a.py", "examples/../examples/a.py", "also"
    )
    assert _paths(plan) == ["examples/a.py", "examples/deep/b.py"]
    plan = project.plan("link.py", "examples")
    assert _paths(plan) == ["examples/deep/b.py", "link.py"]
    assert _reasons(plan) == {"examples/a.py": "the same file as link.py"}


def test_hard_links_are_files_of_their_own(project: Project) -> None:
    project.write({"examples/a.py": RUNS})
    os.link(project.root / "examples" / "a.py", project.root / "examples" / "b.py")
    assert _paths(project.plan()) == ["examples/a.py", "examples/b.py"]


def test_what_is_no_regular_file_is_never_opened(project: Project) -> None:
    project.write({"examples/a.py": RUNS})
    os.mkfifo(project.root / "examples" / "pipe.py")
    (project.root / "examples" / "link.py").symlink_to("pipe.py")
    (project.root / "examples" / "folder.py").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(project.root / "examples" / "s.py"))
        plan = project.plan()
    assert _paths(plan) == ["examples/a.py"]
    assert _reasons(plan) == dict.fromkeys(
        ["examples/link.py", "examples/pipe.py", "examples/s.py"], "not a regular file"
    )


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """Give a folder of a user who cannot read everything, and be that user."""
    me = os.geteuid()
    user = 65534 if me == 0 else me
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, user, -1)
        os.seteuid(user)
        try:
            yield Path(folder)
        finally:
            os.seteuid(me)


def test_what_cannot_be_read_is_not_lost(ordinary_user: Path) -> None:
    project = Project(ordinary_user)
    project.write({"examples/a.py": RUNS, "examples/closed/b.py": RUNS})
    (project.root / "examples" / "a.py").chmod(0)
    (project.root / "examples" / "closed").chmod(0)
    plan = project.plan()
    (project.root / "examples" / "closed").chmod(0o755)
    assert _paths(plan) == ["examples/a.py"]
    assert _reasons(plan) == {"examples/closed/": "cannot be read: Permission denied"}
    assert plan.warnings == (
        "examples/closed/ cannot be read: Permission denied: nothing in it is run",
    )


STRANGE = ["a b.py", "[x].py", "q'\"q.py", "new\nline.py", "-c.py", "--help.py", "ü.py", "$(x).py"]


def test_strange_names_run_as_they_are(project: Project) -> None:
    body = "import sys, os\nprint(os.path.basename(sys.argv[0]) == os.path.basename(__file__))\n"
    project.write({f"examples/{name}": body for name in STRANGE})
    raw = os.fsencode(project.root) + b"/examples/\xff\xfe.py"
    Path(os.fsdecode(raw)).write_text(body)
    plan = project.plan()
    assert sorted(_paths(plan)) == sorted(
        [f"examples/{name}" for name in STRANGE] + ["examples/\udcff\udcfe.py"]
    )
    for example in plan.examples:
        done = subprocess.run(
            example.argv, cwd=example.settings.cwd, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_file_outside_of_the_root_is_known_by_its_whole_path(
    project: Project, tmp_path: Path
) -> None:
    project.write({})
    (tmp_path / "far.py").write_text(RUNS)
    assert _paths(project.plan("../far.py", config="e2e-run.toml")) == [str(tmp_path / "far.py")]


def test_a_root_known_by_another_name(project: Project, tmp_path: Path) -> None:
    project.write({"examples/a.py": RUNS})
    (tmp_path / "alias").symlink_to(project.root)
    plan = project.plan(str(tmp_path / "alias" / "examples"), config="e2e-run.toml")
    assert _paths(plan) == ["examples/a.py"]


def test_a_script_that_does_not_parse_is_an_example(project: Project) -> None:
    project.write({"examples/a.py": "print 'old'\n", "examples/b.py": "x = '\\d'\nprint(x)\n"})
    (project.root / "examples" / "c.py").write_bytes(b"\0\xff")
    (project.root / "examples" / "big.py").write_bytes(b"print(1)\n" + b"#" * 2_000_000)
    plan = project.plan()
    assert _paths(plan) == [f"examples/{name}.py" for name in ("a", "b", "big", "c")]
    assert plan.warnings == (
        "examples/big.py is larger than 1.0 MiB: only its metadata is looked at",
    )


_trees = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "build", ".x"]), min_size=1, max_size=3).map("/".join),
    st.sampled_from([RUNS, "X = 1\n", "import a\nprint(1)\n"]),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_trees)
def test_every_script_is_an_example_or_listed_once(tmp_path: Path, tree: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        project = Project(Path(folder)).write(
            {f"examples/{path}.py": text for path, text in tree.items()} | {"examples/z.py": RUNS}
        )
        plan = project.plan()
    listed = _paths(plan) + list(_reasons(plan))
    assert len(listed) == len(set(listed))
    assert _paths(plan) == sorted(_paths(plan), key=lambda path: path.split("/"))
    for path in tree:
        file = f"examples/{path}.py"
        inside = any(name.endswith("/") and file.startswith(name) for name in listed)
        assert (file in listed) != inside


# --- what it imports -----------------------------------------------------------------------------


def test_ports_of_what_is_imported(project: Project) -> None:
    project.write(
        {
            "examples/a.py": "from _common import server\nserver('app:app')\n",
            "examples/_common.py": "import settings\ndef server(app, port=8000): ...\n",
            "examples/settings.py": "PORTS = [8001, 8002]\n",
            "examples/b.py": "import demo\ndemo.run(port=9000)\n",
            "examples/demo.py": "if __name__ == '__main__':\n    run(port=8003)\n",
            "examples/c.py": "import circle\nPORT = 8004\nprint(1)\n",
            "examples/circle.py": "import c, settings\nPORT = 8004\n",
            "examples/d.py": "import sys\nsys.path.append('..')\nfrom app import api\nprint(1)\n",
            "app/api.py": "uvicorn.run('app.main:app')\n",
            "app/main.py": "PORT = 8005\n",
            "examples/e.py": _metadata("ports = [8000]", body="import _common\nprint(1)\n"),
        }
    )
    paths = [f"examples/{name}.py" for name in ("a", "b", "c", "d", "demo", "e")]
    found = {each.path: each.found_ports for each in project.plan(*paths).examples}
    assert found == {
        "examples/a.py": (8000, 8001, 8002),
        "examples/b.py": (9000,),
        "examples/c.py": (8004, 8001, 8002),
        "examples/d.py": (8005,),
        "examples/demo.py": (8003,),
        "examples/e.py": (8001, 8002),
    }


def test_ports_of_services_are_its_own_only_where_it_may_start_them(
    project: Project,
) -> None:
    project.write(
        {
            "examples/a.py": "import _cache\nprint(1)\n",
            "examples/b.py": "import _cache\nimport subprocess\nPORT = 8000\nprint(1)\n",
            "examples/c.py": "import _cache\nPORT = 6379\nprint(1)\n",
            "examples/d.py": "import redis\nredis.Redis(port=6380).ping()\n",
            "examples/_cache.py": "import redis\ndef cache():\n    return redis.Redis(port=6379)\n",
        }
    )
    found = {each.path: (each.found_ports, each.service_ports) for each in project.plan().examples}
    assert found == {
        "examples/a.py": ((), (6379,)),
        "examples/b.py": ((8000, 6379), (6379,)),
        "examples/c.py": ((6379,), ()),
        "examples/d.py": ((), (6380,)),
    }


def test_a_pipe_with_the_name_of_a_module_is_never_opened(project: Project) -> None:
    project.write({"examples/a.py": "import pipe\nprint(1)\n"})
    os.mkfifo(project.root / "examples" / "pipe.py")
    assert _paths(project.plan("examples/a.py")) == ["examples/a.py"]


_HELPERS = (*(f"examples/{name}" for name in ("_h", "util", "deep/_h")), "app/db", "app/web")
_IMPORTS = (
    *("import _h", "import util", "from app import db", "import app.web, a", "import app"),
    *("from . import util", "from .deep import _h", "if True: import _h; import util"),
    *("import sys\nsys.path.append('..')", "'''\nimport _h\nimport asyncpg\n'''"),
    *("def server(app='app.web:app'): ...", "run('util:app')"),
)
_WANTS = (
    *("import asyncpg", "PORT = 8000", "def serve(app, port=8001): ...", "import websockets"),
    *("if __name__ == '__main__':\n    run(port=8002)", "import subprocess", "print 'old'"),
    *("redis.Redis(port=6379)", "connect('postgresql://localhost:5433/x')"),
    "os.environ['DATABASE_URL']",
)


def _source(end: str) -> st.SearchStrategy[str]:
    imports = st.lists(st.sampled_from(_IMPORTS), min_size=1, max_size=3)
    wants = st.lists(st.sampled_from(_WANTS), max_size=1)
    return st.builds(lambda first, then: "\n".join([*first, *then, end]), imports, wants)


_modules = st.fixed_dictionaries(
    {f"examples/{name}": _source("print(1)") for name in ("a", "b", "deep/a")}
    | {name: _source("") for name in _HELPERS},
    optional={"examples/__init__": st.just(""), "app/__init__": _source("")},
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(_modules, st.sampled_from([".", "below"]))
@hypothesis.example(
    {
        "examples/a": "from _h import server\nprint(server)",
        "examples/_h": "def server(app='app:app'): ...",
        "examples/app": "import asyncpg",
    },
    ".",
)
def test_what_is_said_of_a_script_does_not_depend_on_what_is_searched(
    tmp_path: Path, tree: dict[str, str], root: str
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        Project(Path(folder)).write({f"{path}.py": text for path, text in tree.items()})
        (Path(folder) / "below").mkdir()
        config = Path(folder) / root / "e2e-run.toml"  # "below": all scripts are outside of it
        (Path(folder) / "e2e-run.toml").rename(config)

        def listed(*args: str) -> dict[str, tuple[object, list[str]]]:
            given = ["--json", "--config", str(config), *args]
            document = json.loads(CliRunner().invoke(list_command, given).stdout)
            told = document["warnings"]
            return {
                each["file"]: (each, [line for line in told if line.startswith(f"{each['path']}:")])
                for each in document["examples"]
            }

        for file, said in listed(folder).items():
            assert listed(file) == {file: said}
            assert listed(str(Path(file).parent))[file] == said
            assert listed(folder, "-k", Path(file).name)[file] == said


# --- what is told --------------------------------------------------------------------------------


def test_warnings_are_about_what_is_selected(project: Project) -> None:
    misspelt = "# /// script\n# [tool.e2e_run]\n# tags = ['db']\n# ///\n"
    own = "import asyncpg\nasyncpg.connect('postgresql://localhost:5433/shop')\n"
    project.write(
        {
            "examples/db_raw.py": own,
            "examples/db_tagged.py": _metadata("tags = ['slow']", body=own),
            "examples/github.py": _metadata("needs = ['../server.py']"),
            "examples/misspelt.py": misspelt + RUNS,
            "examples/not_one.py": misspelt,
            "examples/off.py": _metadata("skip = 'for now'", body=own),
            "server.py": own,
        }
    )

    def warned(**flags: Any) -> list[str]:
        return [each.partition(":")[0] for each in project.plan(**flags).warnings]

    ignored = ["examples/misspelt.py", "examples/not_one.py"]
    assert warned() == [*ignored, "examples/db_raw.py", "examples/db_tagged.py", "server.py"]
    assert warned(keyword="github") == ["server.py"]
    assert warned(keyword="db_") == ["examples/db_raw.py", "examples/db_tagged.py"]
    assert warned(keyword="not_one") == ["examples/not_one.py"]
    assert warned(skip=("slow",)) == [*ignored, "examples/db_raw.py", "server.py"]
    # Their tags may be among what is ignored.
    assert warned(only=("slow",)) == [*ignored, "examples/db_tagged.py"]


# --- how an example runs -------------------------------------------------------------------------


def test_a_script_runs_in_its_folder_by_its_whole_name(project: Project) -> None:
    project.write({"examples/deep/a.py": RUNS})
    example = project.example("examples/deep/a.py")
    assert example.file == project.root / "examples" / "deep" / "a.py"
    assert example.argv == (sys.executable, str(example.file))
    assert example.settings.cwd == project.root / "examples" / "deep"
    assert example.settings.timeout == 60.0
    assert example.settings.interpreter == (sys.executable,)


def test_all_metadata(project: Project) -> None:
    project.write(
        {
            "examples/server.py": _metadata("serve = 'tcp://127.0.0.1:8000'"),
            "examples/data/x": "",
            "examples/a.py": _metadata(
                "timeout = '2m'",
                "grace = 0",
                "ports = [8000]",
                "tags = ['b', 'a']",
                "env = { X = 1 }",
                "args = ['--fast', 3]",
                "stdin = 'yes'",
                "cwd = 'data'",
                "needs = ['server.py']",
                "expect-exit = 3",
                "interpreter = 'python3 -X dev'",
                body="PORT = 8000\nurl = 'http://localhost:8001'\nprint(url)\n",
            ),
        }
    )
    example = project.example("examples/a.py")
    assert example.problems == ()
    assert example.argv == ("python3", "-X", "dev", str(example.file), "--fast", "3")
    found = example.settings
    assert (found.timeout, found.grace, found.ports) == (120.0, 0.0, (8000,))
    assert (found.tags, found.env, found.args) == (("a", "b"), {"X": "1"}, ("--fast", "3"))
    assert (found.stdin, found.expect_exit, found.skip) == ("yes", 3, None)
    assert found.cwd == project.root / "examples" / "data"
    assert found.needs == (project.root / "examples" / "server.py",)
    assert example.found_ports == (8001,)
    assert example.ports == (8000, 8001)
    (server,) = example.companions
    assert (server.path, server.settings.serve) == (
        "examples/server.py",
        TcpProbe(host="127.0.0.1", port=8000),
    )


def test_every_source_has_its_rank_and_its_place(project: Project) -> None:
    project.write(
        {"examples/a.py": _metadata("timeout = 3", "tags = ['m']", "env = { M = '1' }")},
        """\
timeout = 1
grace = 1
tags = ["c"]
env = { C = "1", M = "0" }
[[overrides]]
match = "examples/*.py"
timeout = 2
grace = 2
tags = ["o"]
[[overrides]]
match = ["b.py", "a.py"]
grace = 4
[[overrides]]
match = "b.py"
grace = 5
""",
    )
    (example,) = project.plan(env=("F=1",)).examples
    found = example.settings
    assert (found.timeout, found.grace, found.tags) == (3.0, 4.0, ("c", "m", "o"))
    assert found.env == {"F": "1", "M": "1", "C": "1"}
    assert found.origins["timeout"] == Origin(source=Source.METADATA, where="examples/a.py:3")
    assert found.origins["grace"] == Origin(source=Source.OVERRIDE, where="e2e-run.toml:12")
    assert found.origins["tags"] == Origin(
        source=Source.METADATA, where="examples/a.py:4, e2e-run.toml:9, e2e-run.toml:3"
    )
    (example,) = project.plan(environ={"E2E_RUN_TIMEOUT": "7"}, grace="8").examples
    assert (example.settings.timeout, example.settings.grace) == (7.0, 8.0)


def test_bad_metadata_is_a_problem_of_its_example_only(project: Project) -> None:
    project.write(
        {
            "examples/a.py": _metadata("timout = 1", "needs = ['gone.py']", "cwd = 'nowhere'"),
            "examples/b.py": RUNS,
        }
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/a.py", "examples/b.py"]
    first, second = (example.problems for example in plan.examples)
    assert second == ()
    assert [problem.message.split("; accepted")[0] for problem in first] == [
        "examples/a.py:3: timout: unknown key; did you mean timeout?",
        f"examples/a.py:5: cwd: {project.root}/examples/nowhere is no folder",
        "examples/a.py:4: needs: 'gone.py' does not exist",
    ]


def test_metadata_that_nobody_reads_is_a_warning(project: Project) -> None:
    project.write(
        {
            "examples/a.py": "#/// script\n#[tool.e2e-run]\n#timeout = 1\n#///\n" + RUNS,
            "examples/b.py": _metadata("needs = ['../server.py']"),
            "server.py": "# /// script\n# [tool.e2e_run]\n# ///\n" + RUNS,
        }
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/a.py", "examples/b.py"]
    assert plan.warnings == (
        "examples/a.py:1: '#/// script' opens no metadata block; accepted: `# /// script`",
        "server.py:2: [tool.e2e_run] is ignored; did you mean [tool.e2e-run]?",
    )


def _override(*patterns: str) -> str:
    return f"[[overrides]]\nmatch = {list(patterns)}\ntimeout = 3\n"


@pytest.mark.parametrize(
    ("patterns", "paths", "idle"),
    [
        (["exmples/*.py"], [], True),
        (["exmples/*.py"], ["examples"], True),
        (["exmples/*.py"], ["."], True),
        (["exmples/*.py"], ["examples/deep"], True),
        (["exmples/*.py"], ["examples/a.py"], False),
        (["exmples/*.py"], ["examples", "examples/a.py"], False),
        (["exmples/*.py", "a.py"], [], False),
        (["b.py"], [], True),
        (["b.py"], ["examples"], True),
        (["b.py"], ["examples/deep"], False),  # it may fit a file elsewhere
        (["examples/b.py"], ["examples"], True),
        (["examples/x*.py"], ["examples/deep"], False),
        (["examples/*.py"], [], False),
        (["examples/test_*.py"], [], False),  # what fits is no example
        (["examples/build/*.py"], [], False),  # not searched
        (["other/*.py"], [], False),
        (["other/*.py"], ["other"], False),
        (["other/*.sh"], ["other"], True),
    ],
)
def test_an_override_that_fits_no_file_is_a_warning(
    project: Project, patterns: list[str], paths: list[str], *, idle: bool
) -> None:
    names = ["a.py", "test_a.py", "deep/c.py", "build/d.py", "../other/e.py"]
    project.write({f"examples/{name}": RUNS for name in names}, _override(*patterns))
    shown = ", ".join(map(repr, patterns))
    assert project.plan(*paths).warnings == (
        (
            (
                f"e2e-run.toml:2: match: {shown} fits no file that was found, so the override does "
                "nothing; accepted: globs relative to the folder of this file, or of names"
            ),
        )
        if idle
        else ()
    )


def test_configured_paths_decide_what_an_override_may_fit(project: Project) -> None:
    files = {"examples/a.py": RUNS, "more/b.py": RUNS}
    project.write(files, "paths = ['examples', 'more']\n" + _override("c.py"))
    assert len(project.plan().warnings) == 1
    assert project.plan("examples").warnings == ()
    assert len(project.plan("examples", "more").warnings) == 1


def test_the_interpreter_says_where_it_comes_from(project: Project, tmp_path: Path) -> None:
    project.write(
        {"examples/a.py": RUNS, "a.sh": "", "b.js": "", "c.py": _metadata("interpreter = 'x y'")},
        "interpreters = { '.sh' = 'dash' }",
    )

    def origin(path: str, **flags: str) -> Origin:
        (example,) = project.plan(path, environ=None, **flags).examples
        return example.settings.origins["interpreter"]

    default = Origin(source=Source.DEFAULT)
    where = "the one running e2e-run"
    assert origin("examples/a.py") == Origin(source=Source.DEFAULT, where=where)
    flag = Origin(source=Source.FLAG, where="--python")
    assert origin("examples/a.py", python=sys.executable) == flag
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    environ = {"VIRTUAL_ENV": str(tmp_path / "env")}
    (example,) = project.plan("examples/a.py", environ=environ).examples
    active = Origin(source=Source.ENVIRONMENT, where="VIRTUAL_ENV")
    assert example.settings.origins["interpreter"] == active
    assert origin("a.sh") == Origin(source=Source.CONFIG, where="e2e-run.toml:1")
    assert origin("b.js") == default
    assert origin("c.py") == Origin(source=Source.METADATA, where="c.py:3")


def test_websocket_tags_are_inferred(project: Project) -> None:
    project.write(
        {
            "examples/ws_chat.py": RUNS,
            "examples/ticker.py": "import websockets\nprint(1)\n",
            "examples/news.py": RUNS,
        }
    )
    tagged = {each.path: each.settings for each in project.plan().examples}
    assert tagged["examples/ws_chat.py"].tags == ("websocket",)
    assert tagged["examples/ticker.py"].tags == ("websocket",)
    assert tagged["examples/news.py"].tags == ()
    assert tagged["examples/ticker.py"].origins["tags"] == Origin(
        source=Source.DEFAULT, where="inferred from websockets"
    )


def test_cwd_project_is_the_root(project: Project) -> None:
    project.write({"examples/deep/a.py": RUNS}, "cwd = 'project'")
    assert project.example("examples/deep/a.py").settings.cwd == project.root


# --- module mode ---------------------------------------------------------------------------------


def _run(example: Example) -> str:
    done = subprocess.run(
        example.argv,
        cwd=example.settings.cwd,
        env={**os.environ, **example.settings.env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr


def test_relative_imports_run_as_a_module_from_above_the_package(project: Project) -> None:
    project.write(
        {
            "examples/shop/__init__.py": "",
            "examples/shop/inner/__init__.py": "",
            "examples/shop/inner/a.py": "from ..data import X\nprint(X, __name__)\n",
            "examples/shop/data.py": "X = 1\n",
        }
    )
    example = project.example("examples/shop/inner/a.py")
    assert example.argv == (sys.executable, "-m", "shop.inner.a")
    assert example.settings.cwd == project.root / "examples"
    assert example.settings.env == {}
    assert _run(example) == "1 __main__\n"


def test_module_mode_with_another_cwd_makes_the_package_importable(project: Project) -> None:
    project.write(
        {
            "examples/shop/__init__.py": "",
            "examples/shop/a.py": "import os\nfrom . import data\nprint(os.getcwd())\n",
            "examples/shop/data.py": "",
        },
        "cwd = 'project'",
    )
    (example,) = project.plan("examples/shop/a.py", environ={"PYTHONPATH": "/x"}).examples
    assert example.settings.env == {"PYTHONPATH": f"{project.root}/examples:/x"}
    assert _run(example) == f"{project.root}\n"


def test_a_sibling_that_shadows_the_standard_library(project: Project) -> None:
    project.write(
        {
            "examples/shop/__init__.py": "",
            "examples/shop/types.py": "X = 1\n",
            "examples/shop/a.py": "import enum\nprint(enum.Enum.__name__)\n",
            "examples/shop/b.py": "import helper\nprint(helper.X)\n",
            "examples/shop/helper.py": "X = 2\n",
            "examples/loose/types.py": "X = 1\n",
            "examples/loose/a.py": RUNS,
        }
    )
    example = project.example("examples/shop/a.py")
    assert example.argv[1:] == ("-m", "shop.a")
    assert _run(example) == "Enum\n"
    # What imports its neighbours by their plain names works as a file only.
    assert project.example("examples/shop/b.py").argv[1:] == (
        str(project.root / "examples/shop/b.py"),
    )
    assert project.example("examples/loose/a.py").argv[1] != "-m"


def test_a_name_that_is_no_module_runs_as_a_file(project: Project) -> None:
    project.write({"examples/shop/__init__.py": "", "examples/shop/a.b.py": "from . import x\n"})
    assert project.example("examples/shop/a.b.py").argv[1].endswith("/a.b.py")


# --- companions ----------------------------------------------------------------------------------


def test_a_companion_without_serve_is_no_example(project: Project) -> None:
    project.write(
        {
            "examples/a.py": _metadata("needs = ['worker.py', '../tools/db.py', 'web.py']"),
            "examples/worker.py": RUNS,
            "examples/web.py": _metadata("serve = 'tcp://127.0.0.1:1'"),
            "tools/db.py": RUNS,
        }
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/a.py", "examples/web.py"]
    assert _reasons(plan) == {"examples/worker.py": "companion of examples/a.py"}
    assert [each.path for each in plan.examples[0].companions] == [
        "examples/worker.py",
        "tools/db.py",
        "examples/web.py",
    ]
    assert "examples/worker.py" in _paths(project.plan("examples", "examples/worker.py"))


def test_circles_of_companions_are_problems(project: Project) -> None:
    project.write(
        {
            "examples/a.py": _metadata("needs = ['b.py']"),
            "examples/b.py": _metadata("needs = ['a.py']"),
            "examples/c.py": _metadata("needs = ['c.py']"),
        }
    )
    example = project.example("examples/a.py")
    assert [problem.message for problem in example.problems] == [
        (
            "examples/a.py:3: needs: 'b.py' has bad metadata: examples/b.py:3: needs: 'a.py' leads "
            "back to itself: examples/a.py needs examples/b.py needs examples/a.py; "
            "accepted: companions without a circle"
        )
    ]
    (problem,) = project.example("examples/c.py").problems
    assert "examples/c.py needs examples/c.py" in problem.message


def test_an_override_may_match_the_companion_too(project: Project) -> None:
    project.write(
        {"examples/a.py": RUNS, "examples/server.py": RUNS},
        "[[overrides]]\nmatch = 'examples/'\nneeds = ['server.py']\n",
    )
    plan = project.plan()
    assert _paths(plan) == ["examples/a.py"]
    assert plan.examples[0].problems == ()


def test_a_long_chain_of_companions_ends(project: Project) -> None:
    project.write({f"examples/c{i}.py": _metadata(f"needs = ['c{i + 1}.py']") for i in range(80)})
    (problem,) = project.example("examples/c0.py").problems
    assert "is needed through more than 50 others" in problem.message


# --- selection -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "reasons"),
    [
        ({"keyword": "ORM"}, {"ws.py": "path does not contain 'ORM' (-k)"}),
        ({"only": ("websocket",)}, {"orm.py": "not tagged websocket (--only)"}),
        ({"skip": ("websocket",)}, {"ws.py": "tagged websocket (--skip)"}),
        ({"skip_websocket": True}, {"ws.py": "tagged websocket (--skip-websocket)"}),
    ],
)
def test_selection(project: Project, flags: dict[str, Any], reasons: dict[str, str]) -> None:
    project.write(
        {
            "examples/orm.py": RUNS,
            "examples/ws.py": RUNS,
            "examples/off.py": _metadata("skip = 'no licence'"),
        }
    )
    plan = project.plan(**flags)
    found = {each.example.path.removeprefix("examples/"): each.reason for each in plan.deselected}
    off = found.pop("off.py")
    assert found == reasons
    assert off == "no licence" or "only" in flags or "keyword" in flags
    assert len(plan.examples) == 1
