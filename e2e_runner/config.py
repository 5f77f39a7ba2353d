"""Resolves flags, environment variables and the configuration file to the settings of a run."""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2e_runner.addresses import (
    DATABASE_URL,
    PLACEHOLDERS,
    complete,
    from_environment,
    placeholders,
)
from e2e_runner.config_file import ConfigFile, find_config, load_config, show_path
from e2e_runner.errors import ConfigError, NothingSelected, UsageError
from e2e_runner.globs import matches
from e2e_runner.kinds import GLOBS
from e2e_runner.layers import (
    Given,
    Layer,
    choose,
    read_environment,
    read_flags,
    read_table,
    suggestion,
)
from e2e_runner.model import (
    DatabaseDefinition,
    Origin,
    PostgresMode,
    PostgresSettings,
    ReportTarget,
    RunSettings,
    ServerAddress,
    Source,
)
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
    is_callers = values["postgres.url"].value is PostgresMode.ENV
    values["postgres.url"] = _server(values["postgres.url"], layers, environ)
    if file:
        values["databases"] = _with_templates(values["databases"], file)
        _check_placeholders(values, overrides, file)

    def example_layer(layer: Layer, scope: Scope) -> Layer:
        names = within(scope, EXAMPLE_SETTINGS)
        return {name: given for name, given in layer.items() if name in names}

    return Resolved(
        run=replace(
            _run_settings(values, file=file, root=root, paths=searched),
            postgres=_postgres_settings(values, environ, is_callers=is_callers),
        ),
        warnings=tuple(warnings),
        flags=example_layer(layers[0], Scope.FLAG),
        environment=example_layer(layers[1], Scope.ENVIRONMENT),
        config=example_layer(layers[2], Scope.CONFIG),
        overrides=overrides,
        python_path=environ.get("PYTHONPATH", ""),
        searches_all=not named or _covers(named, root, config.get("paths")),
    )


def _run_settings(
    values: Mapping[str, Given],
    *,
    file: ConfigFile | None,
    root: Path,
    paths: tuple[Path, ...],
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
        jobs=value("jobs"),
        repeat=value("repeat"),
        last_failed=value("last-failed"),
        shard=value("shard"),
        timings=value("timings"),
        origins={name: given.origin for name, given in values.items()},
    )


# --- PostgreSQL ----------------------------------------------------------------------------------


def caller_server(environ: Mapping[str, str]) -> tuple[ServerAddress, str] | None:
    """Give the server that ``DATABASE_URL`` and ``PG*`` name, and the variable that decided.

    None where they name none. Raises `UsageError` where they cannot be used.
    """
    try:
        found = from_environment(environ)
    except ValueError as error:
        raise UsageError(str(error), remedy="correct the variable, or unset it") from error
    return (_complete(found[0], environ), found[1]) if found else None


def _postgres_settings(
    values: Mapping[str, Given], environ: Mapping[str, str], *, is_callers: bool
) -> PostgresSettings:
    def value(name: str) -> Any:
        return values[name].value

    server, admin = value("postgres.url"), value("postgres.admin-url")
    mode = server if isinstance(server, PostgresMode) else PostgresMode.URL
    return PostgresSettings(
        mode=PostgresMode.ENV if is_callers else mode,
        url=None if isinstance(server, PostgresMode) else server,
        admin_url=_complete(admin, environ) if admin else None,
        scope=value("postgres.scope"),
        env=value("postgres.env"),
        patterns=value("postgres.patterns"),
        protect=value("postgres.protect"),
        keep_databases=value("keep-databases"),
        databases=value("databases"),
    )


def _server(given: Given, layers: Sequence[Layer], environ: Mapping[str, str]) -> Given:
    """Find the address of the server that is chosen, as far as it is one with an address."""
    if given.value is PostgresMode.AUTO:
        weaker = (layer["postgres.url"] for layer in layers if "postgres.url" in layer)
        given = next((each for each in weaker if isinstance(each.value, ServerAddress)), given)
    if isinstance(given.value, ServerAddress):
        return replace(given, value=_complete(given.value, environ))
    if given.value is not PostgresMode.ENV:
        return given
    found = caller_server(environ)
    if found is None:
        facts = []
        if environ.get(DATABASE_URL):
            facts.append(f"{DATABASE_URL} is set, but is no URL of a PostgreSQL server")
        raise UsageError(
            f"{given.origin.where}: env: neither {DATABASE_URL} nor PGHOST, PGPORT, PGUSER or "
            "PGDATABASE names a PostgreSQL server",
            facts=tuple(facts),
            remedy=f"set {DATABASE_URL}=postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or choose "
            "auto: each example then gets a server of its own",
        )
    address, variable = found
    origin = replace(given.origin, where=f"{given.origin.where}, {variable}")
    return Given(value=address, origin=origin)


def _complete(address: ServerAddress, environ: Mapping[str, str]) -> ServerAddress:
    user = address.user or _user_name(environ)
    return complete(address, user=user, exists=os.path.exists)


def _user_name(environ: Mapping[str, str]) -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container that runs as a number
        return environ.get("USER") or str(os.geteuid())


def locate_templates(
    definitions: Iterable[DatabaseDefinition], base: Path
) -> tuple[tuple[DatabaseDefinition, ...], list[tuple[str, str]]]:
    """Make the files of definitions absolute; gives with it, by name, what is wrong with them."""
    located = []
    problems = []
    for definition in definitions:
        files = tuple(_absolute(base, str(name)) for name in definition.template)
        for name, file in zip(definition.template, files, strict=True):
            if not _is_file(file):
                wrong = "is no file" if os.path.lexists(file) else "does not exist"
                problems.append((definition.name, f"{str(name)!r} {wrong}"))
        located.append(replace(definition, template=files))
    return tuple(located), problems


def _with_templates(given: Given, file: ConfigFile) -> Given:
    definitions, problems = locate_templates(given.value, file.file.parent)
    if problems:
        raise ConfigError(
            "\n".join(
                f"{file.place('databases', name, 'template')}: databases.{name}.template: {wrong}; "
                f"accepted: files of SQL, relative to {file.file.name}"
                for name, wrong in problems
            )
        )
    return replace(given, value=definitions)


def _check_placeholders(
    values: Mapping[str, Given], overrides: Iterable[Override], file: ConfigFile
) -> None:
    """Refuse placeholders that nothing fills; raises `ConfigError`."""
    databases = [*values["databases"].value]
    for override in overrides:
        databases += override.layer["databases"].value if "databases" in override.layer else ()
    names = [each if isinstance(each, str) else each.name for each in databases]
    known = (*PLACEHOLDERS, *dict.fromkeys(names))
    problems = []
    for variable, template in values["postgres.env"].value.items():
        for name in placeholders(template):
            if name not in known:
                meant = suggestion(name, known) or f"; accepted: {', '.join(known)}"
                place = file.place("postgres", "env", variable)
                problems.append(f"{place}: postgres.env.{variable}: {{{name}}} is unknown{meant}")
    if problems:
        raise ConfigError("\n".join(problems))


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
        locate=lambda *keys: (file.place(*keys), file.origin(*keys)),
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
        locate=lambda *keys: (
            file.place("overrides", index, *keys),
            file.origin("overrides", index, *keys),
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
    if given := layer.get("timings"):
        result["timings"] = replace(given, value=_absolute(base, given.value))
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
