"""The layers of the package, asserted from its imports: one direction, and no circle."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "e2e_runner"
ROOT = "e2e_runner"

# A part is a module of the package, or a whole package in it.
VOCABULARY = {"errors", "events", "model", "records", "text"}
DECISIONS = {
    *("addresses", "config", "config_file", "dbnames", "discovery", "globs", "hints"),
    *("isolation", "kinds"),
    *("layers", "metadata", "narration", "parsers", "past", "selection"),
    *("schedule", "settings", "shards", "state", "sweep_plan", "timings"),
    *("toml_lines", "trends", "verdict"),
    *("handover", "turns", "wants"),
}
# Each talks to one outside thing. What lies on the disk for a run is one of them, in four modules.
ADAPTERS = (
    {"supervise"},
    {"ports"},
    {"postgres"},
    {"probes", "http_inside"},
    {"relay"},
    {"machine"},
    {"history", "history_file", "recorder"},
    {"logs", "record_file", "rundir", "workspace"},
)
ORCHESTRATION = {
    *(
        "answering",
        "apart",
        "attempt",
        "databases",
        "embedded",
        "engine",
        "fresh_cluster",
        "kept_cluster",
        "lanes",
        "preflight",
    ),
    *("programs", "reaching", "script", "serve_postgres", "server_host", "stop", "sweep"),
    "telling",
}
PRESENTATION = {"report"}
DECIDED = {"state", "sweep_plan", "trends", "verdict"}  # what it shows
COMMAND_LINE = {"__main__", "cli"}
KIT = {"kit"}  # what examples import: a way in of its own, beside the command line
TOOLS = {"docs"}  # run by hand, imported by nothing
SHARED = {"segments", "trees"}  # the standard library alone, for the spawner process too
VERSION = {"__init__"}  # `e2e_runner` itself: a version, which everything may read

ALL_PARTS = VOCABULARY.union(
    DECISIONS, *ADAPTERS, ORCHESTRATION, PRESENTATION, COMMAND_LINE, KIT, TOOLS, SHARED, VERSION
)
INSIDE = VOCABULARY.union(DECISIONS, *ADAPTERS, ORCHESTRATION)

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    **dict.fromkeys(DECISIONS, VOCABULARY | DECISIONS),
    **{part: set() for part in SHARED},
    **{part: VOCABULARY | SHARED | adapter for adapter in ADAPTERS for part in adapter},
    "history": VOCABULARY | {"history_file", "past", "verdict"},
    "postgres": VOCABULARY | SHARED | {"addresses", "dbnames", "postgres", "sweep_plan"},
    **dict.fromkeys(ORCHESTRATION, INSIDE | SHARED),
    **dict.fromkeys(PRESENTATION, VOCABULARY | PRESENTATION | DECIDED),
    **dict.fromkeys(COMMAND_LINE, INSIDE | PRESENTATION | COMMAND_LINE),
    **dict.fromkeys(KIT, INSIDE | SHARED | KIT),
    **dict.fromkeys(TOOLS, VOCABULARY | DECISIONS | KIT),
}

# A library that is not Python's own speaks to one outside thing, so it has one place.
LIBRARIES = {
    "asyncpg": {"postgres"},
    "click": COMMAND_LINE,
    "httpcore": {"http_inside"},
    "httpx": {"probes", "http_inside"},
    "psutil": {"machine", "ports", "supervise"},
    "rich": PRESENTATION,
}
OUTSIDE = {
    *("asyncio", "multiprocessing", "selectors", "socket", "sqlite3", "subprocess", "threading"),
}

SPAWNER_SIDE = {"containment", "keeper", "linux", "netns", "sigchld", "spawner", "wire"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module, by its whole name."""

    importer: str
    name: str
    line: int
    at_import: bool  # it happens when the importer itself is imported

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name}"


def module_names() -> dict[str, Path]:
    names = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def part_of(module: str) -> str:
    """Give the part that a module of the package belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def imports() -> tuple[Import, ...]:
    """List every import of the package, wherever it stands."""
    known = module_names()
    return tuple(
        found
        for module, file in known.items()
        for found in _imports_of(module, ast.parse(file.read_text("utf-8")), known)
    )


def _imports_of(module: str, tree: ast.AST, known: dict[str, Path]) -> Iterator[Import]:
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_typing(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for name in _imported(node, known):
            yield Import(
                importer=module,
                name=name,
                line=getattr(node, "lineno", 0),
                at_import=id(node) not in late,
            )


def _is_for_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imported(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the whole module"
        assert node.module
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in known else node.module


def inside() -> list[Import]:
    return [each for each in imports() if each.name.partition(".")[0] == ROOT]


def outside() -> list[Import]:
    return [each for each in imports() if each.name.partition(".")[0] != ROOT]


def test_every_module_has_a_layer() -> None:
    assert {part_of(name) for name in module_names()} == ALL_PARTS
    assert MAY_IMPORT.keys() == ALL_PARTS


def test_imports_go_one_way() -> None:
    wrong = [
        str(each)
        for each in inside()
        if part_of(each.name) not in MAY_IMPORT[part_of(each.importer)] | VERSION
    ]
    assert wrong == []


def test_nothing_imports_a_tool_or_the_way_in() -> None:
    tops = TOOLS | {"__main__"}
    assert [str(each) for each in inside() if part_of(each.name) in tops] == []


def test_no_module_needs_itself_to_be_imported() -> None:
    needs: dict[str, set[str]] = {name: set() for name in module_names()}
    for each in inside():
        if each.at_import:
            needs[each.importer] |= {each.name} | set(_packages_entered(each))
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for needed in sorted(needs[module]):
                visit(needed, (*path, module))
            finished.add(module)

    for name in needs:
        visit(name, ())


def _packages_entered(each: Import) -> Iterator[str]:
    """Give the packages whose ``__init__`` an import runs, but for those that the importer is in."""
    parts = each.name.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if not f"{each.importer}.".startswith(f"{package}."):
            yield package


def test_a_library_has_one_place() -> None:
    wrong = [
        str(each)
        for each in outside()
        if (top := each.name.partition(".")[0]) not in sys.stdlib_module_names
        and part_of(each.importer) not in LIBRARIES[top]
    ]
    assert wrong == []


def test_vocabulary_and_decisions_reach_for_nothing_outside() -> None:
    pure = VOCABULARY | DECISIONS
    wrong = [
        str(each)
        for each in outside()
        if part_of(each.importer) in pure and each.name.partition(".")[0] in OUTSIDE
    ]
    assert wrong == []


def test_the_spawner_imports_the_standard_library_only() -> None:
    own = {f"{ROOT}.supervise.{name}" for name in SPAWNER_SIDE} | {f"{ROOT}.{n}" for n in SHARED}
    allowed = own | {f"{ROOT}.supervise.process_group"}  # which is only imported in its own tier
    wrong = [
        str(each)
        for each in imports()
        if each.importer in own
        and each.name not in allowed
        and each.name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []
    early = [each for each in imports() if each.name.endswith("supervise.process_group")]
    assert [str(each) for each in early if each.at_import] == []
    tier = [each.name for each in imports() if each.importer == f"{ROOT}.supervise.process_group"]
    assert {name for name in tier if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "psutil",
        f"{ROOT}.supervise.netns",
    }


@pytest.mark.parametrize("module", [ROOT, f"{ROOT}.supervise"])
def test_importing_a_package_alone_costs_nothing(module: str) -> None:
    assert [str(each) for each in imports() if each.importer == module] == []


def loaded_by(code: str) -> set[str]:
    """Give the top-level modules that a fresh interpreter has loaded after running `code`."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})",
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_asking_for_the_version_is_cheap() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "e2e_runner", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"asyncio", "httpx", "multiprocessing", "psutil", "rich", "subprocess", "tomllib"}
    assert loaded & heavy == set()
    assert "click" in loaded


def test_making_a_plan_is_cheap() -> None:
    loaded = loaded_by("import e2e_runner.config, e2e_runner.discovery")
    assert loaded & {"asyncio", "httpx", "psutil", "rich", "subprocess"} == set()
