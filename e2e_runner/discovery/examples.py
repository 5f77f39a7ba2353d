"""Makes examples of scripts: resolves their settings, commands and companions."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from e2e_runner.addresses import placeholders
from e2e_runner.config import Resolved, locate_templates
from e2e_runner.discovery.postgres import Marks, misses_its_server
from e2e_runner.discovery.scripts import (
    Modules,
    Script,
    above_package,
    module_name,
    read_script,
)
from e2e_runner.discovery.source import name_says_websocket
from e2e_runner.discovery.walk import Folders, Found, read_source, relative_path
from e2e_runner.layers import Given, choose, suggestion
from e2e_runner.model import (
    DatabaseDefinition,
    Example,
    ExampleSettings,
    Origin,
    Problem,
    Source,
)
from e2e_runner.settings import EXAMPLE_SETTINGS, RUN_SETTINGS

_PROJECT = "project"  # the value of `cwd` that means the root
_INTERPRETERS: Mapping[str, str] = next(
    setting.default for setting in RUN_SETTINGS if setting.name == "interpreters"
)
# What an example's own `env` sets when it brings its server.
_SERVER_VARIABLES = ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE")
_DEEPEST_CHAIN = 50  # companions of companions


class Builder:
    """Builds the examples of one plan; each file is read and resolved once."""

    def __init__(
        self, resolved: Resolved, folders: Folders, modules: Modules, marks: Marks
    ) -> None:
        self.resolved = resolved
        self.folders = folders
        self.modules = modules
        self.marks = marks
        self.warnings: dict[str, tuple[str, ...]] = {}  # by the path of an example or companion
        self._root = str(resolved.run.root)
        self._companions: dict[str, Example] = {}
        self._chain: list[str] = []  # paths of the examples that are being built

    def build(self, script: Script) -> Example:
        """Make the example of a script, with those that it needs."""
        path = script.found.path
        layers = self.resolved.layers(path, script.metadata.layer)
        given = {setting.name: choose(setting, layers) for setting in EXAMPLE_SETTINGS}
        given["tags"] = _with_inferred(given["tags"], script)
        problems = list(script.metadata.problems)
        given["interpreter"], is_python, more = self._interpreter(script, given["interpreter"])
        interpreter: tuple[str, ...] = given["interpreter"].value
        problems += more
        module = module_name(script, self.folders) if is_python else ""
        cwd, more = self._cwd(script, given["cwd"], module)
        problems += more
        if module:
            given["env"] = self._importable(given["env"], script, cwd)
        self._chain.append(path)
        companions, more = self._needed(script, given["needs"])
        self._chain.pop()
        problems += more
        given["postgres"] = self._wish(given)
        given["databases"], more = self._databases(script, given["databases"])
        problems += more
        settings = ExampleSettings(
            timeout=given["timeout"].value,
            grace=given["grace"].value,
            ports=given["ports"].value,
            tags=given["tags"].value,
            env=given["env"].value,
            args=given["args"].value,
            stdin=given["stdin"].value,
            cwd=Path(cwd),
            serve=given["serve"].value,
            needs=tuple(companion.file for companion in companions),
            skip=given["skip"].value,
            expect_exit=given["expect-exit"].value,
            interpreter=interpreter,
            postgres=given["postgres"].value,
            databases=given["databases"].value,
            network=given["network"].value,
            reach=given["reach"].value,
            exclusive=given["exclusive"].value,
            locks=given["locks"].value,
            retries=given["retries"].value,
            origins={name: each.origin for name, each in given.items()},
        )
        target = ("-m", module) if module else (script.found.file,)
        own_server = script.facts.own_server
        if misses_its_server(own_server, settings, self.resolved.run.postgres):
            missed = (
                f"{path}: goes to a PostgreSQL server of its own, {own_server}, and not to the one "
                "that e2e-run gives it: read DATABASE_URL or PGHOST, PGPORT, or declare "
                "postgres = false"
            )
            self.warnings[path] = (*self.warnings.get(path, ()), missed)
        program = self.modules.program(script)
        return Example(
            path=path,
            file=Path(script.found.file),
            argv=(*interpreter, *target, *settings.args),
            settings=settings,
            found_ports=tuple(port for port in program.ports if port not in settings.ports),
            service_ports=program.gone_to,
            problems=tuple(problems),
            companions=companions,
            found_postgres=program.postgres,
        )

    def _interpreter(self, script: Script, given: Given) -> tuple[Given, bool, list[Problem]]:
        """Give the command, whether it is the project's Python, and what is wrong."""
        if given.value is not None:
            return replace(given, value=_located(given.value, script.folder)), False, []
        run = self.resolved.run
        command = run.interpreters.get(script.suffix)
        if command is not None:
            located = _located(tuple(shlex.split(command)), self._root)
            own = command != _INTERPRETERS.get(script.suffix)
            origin = run.origins["interpreters"] if own else given.origin
            return Given(value=located, origin=origin), False, []
        if script.suffix == ".py":
            return Given(value=(run.python,), origin=run.origins["python"]), True, []
        if os.access(script.found.file, os.X_OK):
            return replace(given, value=()), False, []
        known = ", ".join(sorted({".py", *run.interpreters}))
        kind = f"files with the suffix {script.suffix}" if script.suffix else "files without suffix"
        entry = f'`interpreters = {{ "{script.suffix}" = "COMMAND" }}` in the configuration, '
        message = (
            f"{script.found.path}:1: interpreter: none is known for {kind}; accepted: "
            f"{entry if script.suffix else ''}`interpreter` in an override, an executable file, or a "
            f"suffix of {known}"
        )
        return replace(given, value=()), False, [Problem(message=message)]

    def _cwd(self, script: Script, given: Given, module: str) -> tuple[str, list[Problem]]:
        if given.value is None:
            above = above_package(script.folder, self.folders) if module else script.folder
            return above, []
        if given.value == _PROJECT:
            return self._root, []
        folder = os.path.normpath(f"{script.folder}/{given.value}")
        if given.value.startswith("/"):
            folder = given.value
        if os.path.isdir(folder):  # noqa: PTH112 - says no, and does not raise, in a closed folder
            return folder, []
        message = (
            f"{given.origin.where}: cwd: {folder} is no folder; accepted: {_PROJECT}, or a folder "
            "relative to the script's"
        )
        return folder, [Problem(message=message)]

    def _importable(self, given: Given, script: Script, cwd: str) -> Given:
        """Make the package of a script that runs as a module importable from another `cwd`."""
        above = above_package(script.folder, self.folders)
        if above == cwd:
            return given
        env: dict[str, str] = given.value
        inherited = env.get("PYTHONPATH", self.resolved.python_path)
        value = f"{above}{os.pathsep}{inherited}" if inherited else above
        return replace(given, value={**env, "PYTHONPATH": value})

    # --- PostgreSQL ------------------------------------------------------------------------------

    def _wish(self, given: Mapping[str, Given]) -> Given:
        """Say what is declared; who is told of another server, and says no more, wants none."""
        wish = given["postgres"]
        if wish.value is not None or given["databases"].value:
            return wish
        env = given["env"]
        mapping = self.resolved.run.postgres.env
        servers = [name for name in mapping if {"host", "url"} & set(placeholders(mapping[name]))]
        named = [name for name in (*_SERVER_VARIABLES, *servers) if name in env.value]
        if not named:
            return wish
        where = f"{env.origin.where}: env sets {named[0]}"
        return Given(value=False, origin=replace(env.origin, where=where))

    def _databases(self, script: Script, given: Given) -> tuple[Given, list[Problem]]:
        """Give the definitions of the databases that the example gets, and what is wrong."""
        run = self.resolved.run
        if given.value is None:
            origin = run.origins["databases"] if run.postgres.databases else given.origin
            return Given(value=run.postgres.databases, origin=origin), []
        if not all(isinstance(each, str) for each in given.value):
            definitions, wrong = locate_templates(given.value, Path(script.folder))
            problems = [
                f"databases.{name}.template: {each}; accepted: files of SQL, relative to the script"
                for name, each in wrong
            ]
        elif run.postgres.databases:
            known = {each.name: each for each in run.postgres.databases}
            definitions = tuple(known[name] for name in given.value if name in known)
            problems = [
                f"databases: {name!r} is not defined"
                f"{suggestion(name, known) or '; accepted: ' + ', '.join(known)}"
                for name in given.value
                if name not in known
            ]
        else:
            definitions = tuple(DatabaseDefinition(name=name) for name in given.value)
            problems = []
        where = given.origin.where
        return replace(given, value=definitions), [
            Problem(message=f"{where}: {problem}") for problem in problems
        ]

    # --- companions ------------------------------------------------------------------------------

    def _needed(self, script: Script, given: Given) -> tuple[tuple[Example, ...], list[Problem]]:
        companions = []
        problems = []
        for name in given.value:
            file = os.path.normpath(f"{script.folder}/{name}")
            if name.startswith("/"):
                file = name
            if file == script.found.file and given.origin.source is Source.OVERRIDE:
                continue  # the glob of the override matches the companion too
            companion = self._companion(file)
            if isinstance(companion, str):
                message = f"{given.origin.where}: needs: {name!r} {companion}"
                problems.append(Problem(message=message))
                continue
            companions.append(companion)
            problems += [
                Problem(
                    message=f"{given.origin.where}: needs: {name!r} has bad metadata: {each.message}"
                )
                for each in companion.problems
            ]
        return tuple(companions), problems

    def _companion(self, file: str) -> Example | str:
        """Build a companion; returns what is wrong where there is none."""
        path = relative_path(file, self._root)
        if path in self._chain:
            chain = " needs ".join([*self._chain[self._chain.index(path) :], path])
            return f"leads back to itself: {chain}; accepted: companions without a circle"
        if len(self._chain) > _DEEPEST_CHAIN:
            return f"is needed through more than {_DEEPEST_CHAIN} others; accepted: fewer"
        if not os.path.isfile(file):  # noqa: PTH113 - says no, and does not raise, in a closed folder
            return "does not exist; accepted: scripts, relative to the folder of this one"
        if file not in self._companions:
            script = read_script(Found(file=file, path=path), read_source(file), self.marks)
            self.warnings[path] = script.warnings
            self._companions[file] = self.build(script)
        return self._companions[file]


def _with_inferred(given: Given, script: Script) -> Given:
    """Add the inferred tags; sorts them."""
    reason = ""
    if name_says_websocket(script.stem):
        reason = "inferred from the file's name"
    elif script.facts.websocket:
        reason = f"inferred from {script.facts.websocket}"
    tags = set(given.value)
    origin = given.origin
    if reason and "websocket" not in tags:
        tags.add("websocket")
        where = f"{origin.where}, {reason}" if origin.where else reason
        origin = Origin(source=origin.source, where=where)
    return Given(value=tuple(sorted(tags)), origin=origin)


def _located(command: tuple[str, ...], base: str) -> tuple[str, ...]:
    """Make the path of a command absolute; a plain name is left to be found on PATH."""
    first = command[0]
    if "/" not in first or first.startswith("/"):
        return command
    return (os.path.normpath(f"{base}/{first}"), *command[1:])
