"""What ``e2e-run list`` shows of a plan: text for people, and a document for programs. Pure."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_runner.addresses import to_url
from e2e_runner.discovery.postgres import wants_postgres
from e2e_runner.isolation import mode_for
from e2e_runner.model import (
    Containment,
    DatabaseDefinition,
    Endpoint,
    Example,
    HttpProbe,
    LogProbe,
    NetworkMode,
    NetworkTier,
    Origin,
    Past,
    Plan,
    Probe,
    ReportTarget,
    RunSettings,
    ServerAddress,
    Shard,
    TcpProbe,
)
from e2e_runner.report.shape import shard_shape
from e2e_runner.settings import EXAMPLE_SETTINGS, RUN_SETTINGS, Setting
from e2e_runner.text import cell_width, duration, limit, one_line, plural, size

SCHEMA = "e2e-run-list/1"
_WIDEST_PATH = 44  # columns; a longer path has its details on the next line
_UNKNOWN = Past()
_NOT_LISTED = frozenset({"config", "skip-websocket"})  # they steer how others are resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How this machine holds processes together, and gives networks; and why not in a better way."""

    processes: Containment
    process_notes: tuple[str, ...] = ()
    network: NetworkTier
    network_notes: tuple[str, ...] = ()
    jobs: int = 1  # examples at a time
    postgres: str = ""  # in words, what those get that want it; empty: none does


def render(
    plan: Plan,
    run: RunSettings,
    *,
    past: Mapping[str, Past],
    verbose: bool,
    width: int,
    machine: Machine | None = None,
) -> str:
    """Lay the plan out in `width` columns. Paths are never cut; control characters are escaped.

    `past` is what earlier runs tell, by path; `machine`, where known, is shown with what is verbose.
    """
    parts = []
    if verbose and machine is not None:
        parts.append("\n".join(["On this machine:", *_machine(machine, width)]))
    if verbose:
        parts.append("\n".join(["Settings of the run:", *_settings(RUN_SETTINGS, run, width)]))
    narrowed = [_wrap(words, 0, width) for words in (plan.shard, plan.last_failed) if words]
    if narrowed:
        parts.append("\n".join(itertools.chain(*narrowed)))
    if plan.examples:
        parts.append("\n".join(_would_run(plan, past, machine, verbose=verbose, width=width)))
    not_run = [(each.example.path, each.reason) for each in plan.deselected]
    not_examples = [(each.path, each.reason) for each in plan.not_examples]
    for title, rows in (("Would not run:", not_run), ("Not examples:", not_examples)):
        if rows:
            names = _column(path for path, _ in rows)
            lines = [title]
            for path, reason in rows:
                lines += _row(path, reason, names, width)
            parts.append("\n".join(lines))
    parts.append(
        f"{plural(len(plan.examples), 'example')} to run, {len(not_run)} deselected, "
        f"{len(not_examples)} not examples"
    )
    return "\n\n".join(parts)


def _would_run(
    plan: Plan, past: Mapping[str, Past], machine: Machine | None, *, verbose: bool, width: int
) -> Iterator[str]:
    yield f"Would run {plural(len(plan.examples), 'example')}:"
    names = _column(example.path for example in plan.examples)
    for example in plan.examples:
        known = past.get(example.path, _UNKNOWN)
        yield from _row(example.path, _details(example, known), names, width)
        for problem in example.problems:
            yield from _wrap(f"bad metadata: {problem.message}", 6, width)
        if verbose:
            yield from _reasons(example, known, machine, width)
            yield from _settings(EXAMPLE_SETTINGS, example.settings, width)


def document(
    plan: Plan,
    run: RunSettings,
    *,
    past: Mapping[str, Past],
    verbose: bool,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Make the document of ``--json``; `e2e_runner.cli.list_` describes it."""

    def example(each: Example) -> dict[str, Any]:
        return _example(each, past.get(each.path, _UNKNOWN), verbose=verbose)

    result: dict[str, Any] = {
        "schema": SCHEMA,
        "root": str(run.root),
        "config": str(run.config_file) if run.config_file else None,
        "python": run.python,
        "shard": None if plan.cut is None else shard_shape(plan.cut),
        "last_failed": bool(plan.last_failed),
        "examples": [example(each) for each in plan.examples],
        "deselected": [
            {**example(each.example), "reason": each.reason} for each in plan.deselected
        ],
        "not_examples": [{"path": each.path, "reason": each.reason} for each in plan.not_examples],
        "warnings": list(plan.warnings),
    }
    if verbose:
        result["settings"] = _with_origins(RUN_SETTINGS, run)
    if verbose and machine is not None:
        result["isolation"] = {
            "network": machine.network.value,
            "processes": machine.processes.value,
            "notes": list(machine.process_notes),
            "network_notes": list(machine.network_notes),
        }
        result["jobs"] = machine.jobs
        result["postgres"] = machine.postgres or None
    return result


# --- for people ----------------------------------------------------------------------------------


def _details(example: Example, past: Past) -> str:
    settings = example.settings
    parts = [limit(settings.timeout)]
    if past.duration is not None:
        parts.append(f"takes {duration(past.duration)}")
    if past.failed:
        parts.append("failed last time")
    if settings.ports:
        parts.append(f"needs port {', '.join(map(str, settings.ports))}")
    if example.found_ports:
        parts.append(f"uses port {', '.join(map(str, example.found_ports))}")
    if learned := _learned_ports(example, past):
        parts.append(f"opens port {', '.join(map(str, learned))}")
    if settings.serve is not None:
        parts.append("server")
    if wants_postgres(example):
        names = " ".join(each.name for each in settings.databases)
        parts.append(f"PostgreSQL: {names}" if names else "PostgreSQL")
    parts += _apart(example, past)
    if settings.tags:
        parts.append(" ".join(settings.tags))
    if example.companions:
        parts.append("with " + ", ".join(each.path for each in example.companions))
    return "; ".join(parts)


def _apart(example: Example, past: Past) -> Iterator[str]:
    """Say what keeps the example from running beside just any other."""
    settings = example.settings
    if settings.network is NetworkMode.ISOLATED:
        yield "network of its own"
    elif mode_for(settings, NetworkTier.NAMESPACE, past) is NetworkMode.HOST:
        yield "host network"
    if settings.exclusive:
        yield "exclusive"
    if settings.locks:
        yield f"locks {', '.join(settings.locks)}"


def _learned_ports(example: Example, past: Past) -> list[int]:
    """Give the ports that it was seen to listen on, but for those known otherwise."""
    known = {*example.ports, *(port for each in example.companions for port in each.ports)}
    return [port for port in past.ports if port not in known]


def _reasons(example: Example, past: Past, machine: Machine | None, width: int) -> list[str]:
    """Say where what was decided about an example comes from."""
    lines = []
    if reason := wants_postgres(example):
        lines += _wrap(f"wants PostgreSQL: {reason}", 6, width)
    if machine is not None:
        lines += _wrap(_network(example, past, machine.network), 6, width)
    return lines


def _network(example: Example, past: Past, tier: NetworkTier) -> str:
    """Say on which network an example runs, and why there."""
    wanted = example.settings.network
    mode = mode_for(example.settings, tier, past)
    place = "a network of its own" if mode is NetworkMode.ISOLATED else "the host network"
    if mode is NetworkMode.ISOLATED and tier is NetworkTier.HOST:
        return f"will be blocked: it wants {place}, and this machine gives none"
    if wanted is not NetworkMode.AUTO:
        why = f"network = {wanted}"
    elif mode is NetworkMode.ISOLATED:
        why = str(tier)
    elif tier is NetworkTier.HOST:
        why = "this machine gives no other"
    else:
        why = "learned: it failed in one of its own, and not on this one"
    return f"runs on {place}: {why}"


def _machine(machine: Machine, width: int) -> Iterator[str]:
    for name, tier, notes in (
        ("processes", machine.processes, machine.process_notes),
        ("network", machine.network, machine.network_notes),
    ):
        yield f"      {name}: {tier}"
        for note in notes:
            yield from _wrap(note, 8, width)
    if machine.network is NetworkTier.HOST and machine.network_notes:
        yield from _wrap("docs/isolation.md of e2e-run says what allows a better one", 8, width)
    yield f"      jobs: {machine.jobs}"
    if machine.postgres:
        yield from _wrap(f"PostgreSQL: {machine.postgres}", 6, width)


def _column(paths: Iterable[str]) -> int:
    widths = (cell_width(one_line(path)) for path in paths)
    return max((each for each in widths if each <= _WIDEST_PATH), default=0)


def _row(path: str, detail: str, names: int, width: int) -> list[str]:
    path, detail = one_line(path), one_line(detail)
    taken = cell_width(path)
    if taken <= names and names + 4 + cell_width(detail) <= width:
        return [f"  {path}{' ' * (names - taken)}  {detail}"]
    return [f"  {path}", *_wrap(detail, 6, width)]


def _wrap(text: str, indent: int, width: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        one_line(text),
        max(width, indent + 20),
        initial_indent=margin,
        subsequent_indent=margin + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    ) or [margin]


def _settings(settings: Iterable[Setting], values: Any, width: int) -> list[str]:
    lines = []
    for setting, value, origin in _resolved(settings, values):
        text = f"{setting.name} = {_words(setting, value)}"
        lines += _wrap(f"{text}  ({_origin(origin)})", 6, width)
    return lines


def _resolved(settings: Iterable[Setting], values: Any) -> Iterable[tuple[Setting, Any, Origin]]:
    for setting in settings:
        if setting.name not in _NOT_LISTED:
            yield setting, _value(setting, values), values.origins[setting.name]


def _value(setting: Setting, values: Any) -> Any:
    """Give the value of a setting, wherever `RunSettings` or `ExampleSettings` has it."""
    if not isinstance(values, RunSettings):
        return getattr(values, setting.parameter)
    name = setting.name.removeprefix("postgres.")
    if name == "url":
        return values.postgres.url or values.postgres.mode
    if name != setting.name or name in {"databases", "keep-databases"}:
        return getattr(values.postgres, name.replace("-", "_"))
    return values.reports if name == "report" else getattr(values, setting.parameter)


def _origin(origin: Origin) -> str:
    return f"{origin.source}: {origin.where}" if origin.where else str(origin.source)


def _words(setting: Setting, value: Any) -> str:
    if setting.name == "databases" and not value:
        return "none"
    if value is None or value in ((), {}):
        return setting.default_words
    if setting.name in {"timeout", "grace"}:
        return limit(value)
    if setting.name == "max-output":
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _joined(_plain(value))


def _joined(plain: Any) -> str:
    if isinstance(plain, list):
        return ", ".join(map(str, plain))
    if isinstance(plain, dict):
        return ", ".join(f"{name}={content}" for name, content in plain.items())
    return str(plain)


# --- for programs --------------------------------------------------------------------------------


def _example(example: Example, past: Past, *, verbose: bool) -> dict[str, Any]:
    settings = example.settings
    wish = wants_postgres(example)
    result = {
        "path": example.path,
        "file": str(example.file),
        "command": list(example.argv),
        "cwd": str(settings.cwd),
        "timeout": settings.timeout,
        "grace": settings.grace,
        "tags": list(settings.tags),
        "ports": list(settings.ports),
        "found_ports": list(example.found_ports),
        "learned_ports": _learned_ports(example, past),
        "last_duration": past.duration,
        "failed_last_time": past.failed,
        "network": settings.network.value,
        "network_learned": None if past.network is None else past.network.value,
        "reach": [str(endpoint) for endpoint in settings.reach],
        "exclusive": settings.exclusive,
        "locks": list(settings.locks),
        "retries": settings.retries,
        "serve": _plain(settings.serve),
        "needs": [companion.path for companion in example.companions],
        "expect_exit": settings.expect_exit,
        "postgres": wish or None,
        "databases": [definition.name for definition in settings.databases] if wish else [],
        "problems": [problem.message for problem in example.problems],
    }
    if verbose:
        result["settings"] = _with_origins(EXAMPLE_SETTINGS, settings)
    return result


def _with_origins(settings: Iterable[Setting], values: Any) -> dict[str, Any]:
    return {
        setting.name: {"value": _plain(value), "source": str(origin.source), "where": origin.where}
        for setting, value, origin in _resolved(settings, values)
    }


def _plain(value: Any) -> Any:
    """Turn a setting's value into what JSON can hold."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, HttpProbe | TcpProbe | LogProbe):
        return _probe(value)
    if isinstance(value, ServerAddress | DatabaseDefinition | ReportTarget):
        return _short(value)
    return str(value) if isinstance(value, str | Path | Endpoint | Shard) else value


def _short(value: ServerAddress | DatabaseDefinition | ReportTarget) -> str:
    match value:
        case ServerAddress():
            return to_url(value, with_password=False)
        case DatabaseDefinition(name=name):
            return name
        case ReportTarget(format=format_, file=file):
            return f"{format_}={file}"


def _probe(probe: Probe) -> str:
    match probe:
        case HttpProbe(url=url):
            return url
        case TcpProbe(host=host, port=port):
            return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        case LogProbe(pattern=pattern):
            return f"log:{pattern}"
