"""Resolves flags, environment variables and the configuration file to the settings of a run."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2e_runner.config_file import ConfigFile, find_config, load_config, show_path
from e2e_runner.errors import ConfigError, NothingSelected, UsageError
from e2e_runner.globs import matches
from e2e_runner.kinds import GLOBS
from e2e_runner.layers import Given, Layer, choose, read_environment, read_flags, read_table
from e2e_runner.model import Origin, ReportTarget, RunSettings, Source
from e2e_runner.settings import EXAMPLE_SETTINGS, RUN_SETTINGS, Scope, within

STATE_FOLDER = ".e2e-run"
DEFAULT_FOLDER = "examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One ``[[tool.e2e-run.overrides]]``: what it says of the examples that a glob matches."""

    match: tuple[str, ...]
    layer: Layer
    place: str  # of `match`, as messages name it


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The settings of a run, and what the settings of each example are resolved from."""

    run: RunSettings
    warnings: tuple[str, ...]
    flags: Layer  # of examples, as the next two
    environment: Layer
    config: Layer
    overrides: tuple[Override, ...]  # the last that matches is the strongest
    python_path: str  # PYTHONPATH of the caller
    searches_all: bool  # whether all that is searched when no PATH is given is searched

    def layers(self, path: str, metadata: Layer) -> list[Layer]:
        """Give what each source says of the example `path`, strongest first."""
        matching = [
            override.layer
            for override in reversed(self.overrides)
            if any(matches(pattern, path) for pattern in override.match)
        ]
        return [self.flags, self.environment, metadata, *matching, self.config]


def resolve(
    flags: Mapping[str, object],
    paths: Sequence[str],
    environ: Mapping[str, str],
    cwd: Path,
    *,
    executable: str | None = None,
) -> Resolved:
    """Resolve the settings of a run.

    `flags` maps parameter names (``max_fail``) to what the command line gave, None where it gave
    nothing; `paths` are the PATH arguments; `cwd` is absolute; `executable` is the interpreter of
    last resort, by default the one that runs e2e-run.

    Raises `UsageError` for a flag, variable or PATH that cannot be used, `ConfigError` for the
    configuration, each with all that is wrong, and `NothingSelected` where no PATH is given and the
    default folder does not exist.
    """
    flag_layer, problems = read_flags(flags)
    environment, more, warnings = read_environment(environ)
    problems += more
    if "verbose" in flag_layer and "quiet" in flag_layer:
        problems.append("--verbose and --quiet contradict each other: give one of them")
    if problems:
        raise UsageError("\n".join(problems))
    named = tuple(_existing(name, cwd) for name in paths)

    file, more = _config_file(flag_layer, environment, named, cwd)
    warnings += more
    root = file.file.parent if file else cwd
    config, overrides = _read_config(file) if file else ({}, ())

    layers = [
        _based(flag_layer, cwd, "--python"),
        _based(environment, cwd, "E2E_RUN_PYTHON"),
        _based(config, root, "python"),
    ]
    values = {setting.name: choose(setting, layers) for setting in RUN_SETTINGS}
    values["skip"] = _skipped_tags(layers, values["skip"])
    if named:
        values["paths"] = Given(value=paths, origin=Origin(source=Source.FLAG, where="PATH"))
    searched = named or _configured_paths(file, root, values["paths"])
    python, python_origin, more = _interpreter(values["python"], environ, root, executable)
    warnings += more
    values["python"] = Given(value=python, origin=python_origin)
    _check_reports(values["report"].value)

    def example_layer(layer: Layer, scope: Scope) -> Layer:
        names = within(scope, EXAMPLE_SETTINGS)
        return {name: given for name, given in layer.items() if name in names}

    return Resolved(
        run=_run_settings(values, file=file, root=root, paths=searched),
        warnings=tuple(warnings),
        flags=example_layer(layers[0], Scope.FLAG),
        environment=example_layer(layers[1], Scope.ENVIRONMENT),
        config=example_layer(layers[2], Scope.CONFIG),
        overrides=overrides,
        python_path=environ.get("PYTHONPATH", ""),
        searches_all=not named or _covers(named, root, config.get("paths")),
    )


def _run_settings(
    values: Mapping[str, Given], *, file: ConfigFile | None, root: Path, paths: tuple[Path, ...]
) -> RunSettings:
    def value(name: str) -> Any:
        return values[name].value

    return RunSettings(
        root=root,
        config_file=file.file if file else None,
        state_dir=root / STATE_FOLDER,
        paths=paths,
        python=value("python"),
        keyword=value("keyword"),
        only=value("only"),
        skip=value("skip"),
        include=value("include"),
        exclude=value("exclude"),
        interpreters=value("interpreters"),
        fail_on_output=value("fail-on-output"),
        strict=value("strict"),
        fail_fast=value("fail-fast"),
        max_fail=value("max-fail"),
        on_port_conflict=value("on-port-conflict"),
        free_ports=value("free-ports"),
        containment=value("containment"),
        max_output=value("max-output"),
        capture=value("capture"),
        no_capture=value("no-capture"),
        keep_runs=value("keep-runs"),
        reports=value("report"),
        verbose=value("verbose"),
        quiet=value("quiet"),
        color=value("color"),
        origins={name: given.origin for name, given in values.items()},
    )


# --- paths ---------------------------------------------------------------------------------------


def _existing(name: str, cwd: Path) -> Path:
    """Make a PATH argument absolute; raises `UsageError` where it names nothing that can run."""
    file = _absolute(cwd, name)
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        if file.is_symlink():
            return file
        raise _missing(name, file, cwd) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise UsageError(f"{name!r} cannot be read: {reason}") from error
    if not file.is_file() and not file.is_dir():
        raise UsageError(
            f"{name} is neither a file nor a folder", remedy="name a script or a folder of scripts"
        )
    return file


def _missing(name: str, file: Path, cwd: Path) -> UsageError:
    import difflib

    while not file.parent.is_dir():
        file = file.parent
    try:
        siblings = sorted(entry.name for entry in file.parent.iterdir())
    except OSError:
        siblings = []
    facts = (f"it was looked for in {cwd}",) if not Path(name).is_absolute() else ()
    alike = difflib.get_close_matches(file.name, siblings, 1)
    if alike:
        remedy = f"did you mean {show_path(file.parent / alike[0], cwd)}?"
    else:
        remedy = "name a script or a folder of scripts; e2e-run --help lists the commands"
    return UsageError(f"{name!r} does not exist", facts=facts, remedy=remedy)


def _absolute(base: Path, name: str) -> Path:
    """Make a name absolute without following symlinks: paths are shown as the user knows them."""
    plain = base / name
    tidy = Path(os.path.normpath(plain))
    if ".." not in plain.parts:
        return tidy
    # Behind a symlinked folder `..` is not the folder before it in the name.
    return (
        tidy if os.path.realpath(tidy) == os.path.realpath(plain) else Path(os.path.realpath(plain))
    )


def _configured_paths(file: ConfigFile | None, root: Path, given: Given) -> tuple[Path, ...]:
    if given.origin.source is Source.DEFAULT or file is None:
        folder = root / DEFAULT_FOLDER
        if folder.is_dir():
            return (folder,)
        looked = f"{file.shown} names no paths" if file else "no configuration file was found"
        raise NothingSelected(
            f"There is nothing to run: {folder} is no folder",
            facts=("no PATH was given", looked),
            remedy="name scripts or folders (e2e-run PATH...), set `paths` in [tool.e2e-run], "
            f"or put scripts into {DEFAULT_FOLDER}/",
        )
    found = [_absolute(root, name) for name in given.value]
    problems = [
        f"{file.place('paths')}: paths: {name!r} does not exist; accepted: files and folders, "
        f"relative to {file.file.name}"
        for name, path in zip(given.value, found, strict=True)
        if not os.path.lexists(path)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def _covers(named: Sequence[Path], root: Path, configured: Given | None) -> bool:
    """Say whether the PATHs hold all that would be searched without them."""
    names = configured.value if configured else (DEFAULT_FOLDER,)
    return all(any(_absolute(root, name).is_relative_to(path) for path in named) for name in names)


# --- the configuration file ----------------------------------------------------------------------


def _config_file(
    flags: Layer, environment: Layer, named: Sequence[Path], cwd: Path
) -> tuple[ConfigFile | None, list[str]]:
    explicit = flags.get("config") or environment.get("config")
    if explicit:
        return load_config(_absolute(cwd, explicit.value), cwd), []
    first = [path if path.is_dir() else path.parent for path in named[:1]]
    return find_config([*first, cwd], cwd)


def _read_config(file: ConfigFile) -> tuple[dict[str, Given], tuple[Override, ...]]:
    layer, problems = read_table(
        file.table,
        scope=Scope.CONFIG,
        source=Source.CONFIG,
        locate=lambda key: (file.place(key), file.origin(key)),
        ignored=("overrides",),
    )
    listed = file.table.get("overrides", [])
    overrides = []
    if isinstance(listed, list) and all(isinstance(table, dict) for table in listed):
        for index, table in enumerate(listed):
            override, more = _read_override(file, index, table)
            problems += more
            overrides.append(override)
    else:
        problems.append(
            f"{file.place('overrides')}: overrides: is not a list of tables; "
            'accepted: [[tool.e2e-run.overrides]] with match = "GLOB"'
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return layer, tuple(overrides)


def _read_override(
    file: ConfigFile, index: int, table: dict[str, Any]
) -> tuple[Override, list[str]]:
    layer, problems = read_table(
        table,
        scope=Scope.METADATA,
        source=Source.OVERRIDE,
        locate=lambda key: (
            file.place("overrides", index, key),
            file.origin("overrides", index, key),
        ),
        ignored=("match",),
    )
    match: tuple[str, ...] = ()
    place = file.place("overrides", index, "match")
    try:
        match = GLOBS.parse(table.get("match", []))
    except ValueError as error:
        problems.append(f"{place}: match: {error}; accepted: {GLOBS.accepted}")
    else:
        if not match:
            problems.append(f"{place}: match: is missing; accepted: {GLOBS.accepted}")
    return Override(match=match, layer=layer, place=place), problems


# --- single settings -----------------------------------------------------------------------------


def _based(layer: Layer, base: Path, python_name: str) -> Layer:
    """Make the paths that one source gives absolute: they are relative to where they are written."""
    result = dict(layer)
    if given := layer.get("report"):
        targets = tuple(
            ReportTarget(format=kind, file=_absolute(base, path)) for kind, path in given.value
        )
        result["report"] = replace(given, value=targets)
    if given := layer.get("python"):
        result["python"] = replace(given, value=_named_interpreter(given, base, python_name))
    return result


def _named_interpreter(given: Given, base: Path, name: str) -> str:
    command: str = given.value
    found = str(_absolute(base, command)) if "/" in command else shutil.which(command)
    where = given.origin.where if given.origin.source is Source.CONFIG else name
    if found is None:
        raise UsageError(
            f"{where}: there is no interpreter {command!r} on PATH", remedy="give its whole path"
        )
    if not _is_file(found) or not os.access(found, os.X_OK):
        reason = "cannot be executed" if os.path.lexists(found) else "does not exist"
        raise UsageError(
            f"{where}: the interpreter {found} {reason}",
            remedy="name a Python interpreter, as in .venv/bin/python",
        )
    return found


def _interpreter(
    given: Given, environ: Mapping[str, str], root: Path, executable: str | None
) -> tuple[str, Origin, list[str]]:
    """Find the interpreter; returns it, where it comes from, and the warnings."""
    if given.value is not None:
        return given.value, given.origin, []
    warnings = []
    active = environ.get("VIRTUAL_ENV", "")
    if active:
        python = Path(active, "bin", "python")
        if _is_file(python):
            return str(python), Origin(source=Source.ENVIRONMENT, where="VIRTUAL_ENV"), []
        warnings.append(f"VIRTUAL_ENV names {active}, which has no bin/python: it is ignored")
    python = root / ".venv" / "bin" / "python"
    if _is_file(python):
        return str(python), Origin(source=Source.DEFAULT, where=".venv"), warnings
    fallback = executable or sys.executable
    return fallback, Origin(source=Source.DEFAULT, where="the one running e2e-run"), warnings


def _is_file(name: str | Path) -> bool:
    return os.path.isfile(name)  # noqa: PTH113 - says no, and does not raise, in a closed folder


def _skipped_tags(layers: Sequence[Layer], skip: Given) -> Given:
    """Join the tags to skip. A tag that a stronger source selects by `only` is not skipped."""
    selected: set[str] = set()
    tags: dict[str, None] = {}
    origin = skip.origin
    for layer in layers:
        if "skip" in layer:
            tags |= dict.fromkeys(tag for tag in layer["skip"].value if tag not in selected)
        websocket = layer.get("skip-websocket")
        if websocket and websocket.value and "websocket" not in selected:
            tags["websocket"] = None
            if origin.source is Source.DEFAULT:
                origin = websocket.origin
        if "only" in layer:
            selected |= set(layer["only"].value)
    return Given(value=tuple(tags), origin=origin)


def _check_reports(targets: Sequence[ReportTarget]) -> None:
    seen: dict[Path, ReportTarget] = {}
    for target in targets:
        other = seen.setdefault(target.file, target)
        if other.format is not target.format:
            raise UsageError(
                f"--report: {other.format} and {target.format} would both be written to {target.file}",
                remedy="give each report a file of its own",
            )
