"""How the values that several sources give for a setting become one.

Sources, strongest first: flag, environment, inline metadata, override, config, default. The
strongest source wins, for each setting on its own. Some kinds add up instead: tables (``env``,
``interpreters``) are merged, the strongest winning for each name; lists of tags, globs, regular
expressions and reports are joined.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e_runner.kinds import Merge
from e2e_runner.model import Origin, Source
from e2e_runner.parsers import NestedError, UnknownKeyError
from e2e_runner.settings import ENVIRONMENT_PREFIX, Scope, Setting, within
from e2e_runner.text import one_line

# Set for the scripts, not read by e2e-run.
_RESERVED = frozenset(
    {
        *("E2E_RUN", "E2E_RUN_ID", "E2E_RUN_EXAMPLE", "E2E_RUN_PROJECT"),
        *("E2E_RUN_COMPANIONS", "E2E_RUN_DATABASES", "E2E_RUN_RECORDS"),
    }
)
_TABLE = ("tool", "e2e-run")
_MISSPELT = ("toole2erun", "toole2erunner", "e2erun", "e2erunner")  # letters and digits of a path
_CLOSE = 0.85
_DEFAULT = Origin(source=Source.DEFAULT)  # one for all: a run may have many thousand examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value and where it came from."""

    value: Any
    origin: Origin


Layer = Mapping[str, Given]  # what one source says: setting name -> value

# The place of a value that some keys lead to: for a problem, and to keep as the origin.
Locate = Callable[..., tuple[str, str]]


def read_flags(flags: Mapping[str, object]) -> tuple[dict[str, Given], list[str]]:
    """Read the flags given, by parameter name; returns the values and the problems found.

    None, False, an empty tuple and a count of zero mean "not given". Names that are no flags are
    ignored: a command has parameters of its own.
    """
    values: dict[str, Given] = {}
    problems: list[str] = []
    for setting in within(Scope.FLAG).values():
        raw = flags.get(setting.parameter)
        if raw is None or raw is False or raw == () or (setting.name == "verbose" and not raw):
            continue
        where = setting.flags[-1]
        try:
            value = setting.kind.parse(raw)
        except ValueError as error:
            problems.append(f"{where}: {error}; accepted: {setting.kind.accepted}")
            continue
        values[setting.name] = Given(value=value, origin=Origin(source=Source.FLAG, where=where))
    return values, problems


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, Given], list[str], list[str]]:
    """Read the ``E2E_RUN_`` variables; returns the values, the problems and the warnings.

    An empty variable counts as not set. Lists are separated by commas. A variable with the prefix
    that is none of e2e-run's is a warning.
    """
    values: dict[str, Given] = {}
    problems: list[str] = []
    known = {setting.variable: setting for setting in within(Scope.ENVIRONMENT).values()}
    for variable, setting in known.items():
        raw: Any = environ.get(variable, "")
        if not raw.strip():
            continue
        if setting.kind.is_list:
            raw = tuple(item.strip() for item in raw.split(",") if item.strip())
        try:
            value = setting.kind.parse(raw)
        except ValueError as error:
            problems.append(f"{variable}: {error}; accepted: {setting.kind.accepted}")
            continue
        origin = Origin(source=Source.ENVIRONMENT, where=variable)
        values[setting.name] = Given(value=value, origin=origin)
    warnings = [
        f"{name} is set, but is no variable of e2e-run{_meant(name, known) or ': it is ignored'}"
        for name in sorted(environ)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and name not in _RESERVED
    ]
    return values, problems, warnings


def _meant(variable: str, known: Iterable[str]) -> str:
    """Suggest a variable by what follows the prefix, which all have in common."""
    names = {each.removeprefix(ENVIRONMENT_PREFIX): each for each in known}
    alike = _alike(variable.removeprefix(ENVIRONMENT_PREFIX), names, cutoff=0.75)
    return f"; did you mean {names[alike]}?" if alike else ""


def read_table(
    table: Mapping[str, object],
    *,
    scope: Scope,
    source: Source,
    locate: Locate,
    ignored: Sequence[str] = (),
) -> tuple[dict[str, Given], list[str]]:
    """Read a TOML table; returns the values and the problems found, each one line.

    `locate` gives, for the keys that lead to a value, the place to name in a problem and the place to
    keep as the origin.
    """
    known = within(scope)
    tables = {name.partition(".")[0] for name in known if "." in name} - known.keys()
    values: dict[str, Given] = {}
    problems: list[str] = []
    for path, raw in _entries(table, tables):
        key = ".".join(path)
        if key in ignored:
            continue
        setting = known.get(key)
        if setting is None:
            wrong = (
                f"is not a table; accepted: {_listed(name for name in known if name.startswith(key))}"
                if key in tables
                else _unknown(key, scope, (*known, *ignored))
            )
            problems.append(f"{locate(*path)[0]}: {one_line(key)}: {wrong}")
            continue
        try:
            value = setting.kind.parse(raw)
        except ValueError as error:
            problems.append(_wrong(error, path, locate, setting))
            continue
        origin = Origin(source=source, where=locate(*path)[1])
        values[key] = Given(value=value, origin=origin)
    return values, problems


def _entries(
    table: Mapping[str, object], tables: Iterable[str]
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Give the keys of a table, with those of the `tables` in it as paths of two."""
    for key, raw in table.items():
        if key in tables and isinstance(raw, dict):
            yield from (((key, inner), value) for inner, value in raw.items())
        else:
            yield (key,), raw


def _wrong(error: ValueError, path: tuple[str, ...], locate: Locate, setting: Setting) -> str:
    accepted = setting.kind.accepted
    if not isinstance(error, NestedError):
        return f"{locate(*path)[0]}: {'.'.join(path)}: {error}; accepted: {accepted}"
    path += error.path
    hint = f"; accepted: {error.accepted or accepted}"
    if isinstance(error, UnknownKeyError):
        hint = suggestion(path[-1], error.known) or hint
    return f"{locate(*path)[0]}: {one_line('.'.join(path))}: {error}{hint}"


def _unknown(key: str, scope: Scope, known: Sequence[str]) -> str:
    dashed = key.replace("_", "-")
    if scope is Scope.CONFIG and dashed in within(Scope.METADATA) and dashed not in known:
        return "is a setting of single examples: write it in their metadata or in an override"
    if scope is Scope.METADATA and dashed in within(Scope.CONFIG) and dashed not in known:
        return "is a setting of the whole run: write it in the configuration file"
    flag = within(Scope.FLAG).get(dashed)
    if flag and dashed not in known:
        return f"is no key here: it is given on the command line, as {flag.flags[-1]}"
    accepted = f"; accepted: {_listed(known)}"
    return f"unknown key{suggestion(key, known) or accepted}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Give ``"; did you mean x?"`` where a known name is like `name`, else an empty string."""
    alike = _alike(name, known, cutoff=0.7)
    return f"; did you mean {alike}?" if alike else ""


def _alike(name: str, known: Iterable[str], *, cutoff: float) -> str:
    import difflib

    by_lower = {candidate.lower(): candidate for candidate in known}
    spellings = dict.fromkeys((name.lower().replace("_", "-"), name.lower()))
    for spelling in spellings:
        found = difflib.get_close_matches(spelling, by_lower, 1, cutoff)
        if found:
            return by_lower[found[0]]
    return ""


def misspelt_table(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Find a table of a TOML document that is clearly meant to be ``[tool.e2e-run]`` and is not.

    Returns the path of its keys, empty where there is none.

    >>> misspelt_table({"tool": {"ruff": {}, "e2e_run": {"timeout": 3}}})
    ('tool', 'e2e_run')
    """
    import difflib

    for path in _tables(data, ()):
        name = re.sub(r"[^a-z0-9]", "", "".join(path).lower())
        if name in _MISSPELT or (
            len(path) == len(_TABLE)
            and difflib.SequenceMatcher(None, name, _MISSPELT[0]).ratio() > _CLOSE
        ):
            return path
    return ()


def _tables(data: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Give the paths of the tables of a document, up to three keys deep."""
    for key, value in data.items():
        path = (*above, key)
        if isinstance(value, dict) and path != _TABLE:
            yield path
            if len(path) <= len(_TABLE):
                yield from _tables(value, path)


# --- joining the sources -------------------------------------------------------------------------


def choose(setting: Setting, layers: Iterable[Layer]) -> Given:
    """Join what `layers` (strongest first) say about one setting."""
    given = [layer[setting.name] for layer in layers if setting.name in layer]
    if not given:
        return Given(value=setting.default, origin=_DEFAULT)
    merge = setting.kind.merge
    if merge is Merge.REPLACE:
        return given[0]
    where = ", ".join(dict.fromkeys(each.origin.where for each in given if each.origin.where))
    origin = Origin(source=given[0].origin.source, where=where)
    if merge is Merge.TABLE:
        table = dict(setting.default)
        for each in reversed(given):
            table.update(each.value)
        return Given(value=table, origin=origin)
    joined = dict.fromkeys(item for each in given for item in each.value)
    return Given(value=tuple(joined), origin=origin)
