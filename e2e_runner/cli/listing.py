"""What ``e2e-run list`` shows of a plan: text for people, and a document for programs. Pure."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from e2e_runner.addresses import to_url
from e2e_runner.discovery.postgres import wants_postgres
from e2e_runner.model import (
    DatabaseDefinition,
    Example,
    HttpProbe,
    LogProbe,
    Origin,
    Plan,
    Probe,
    ReportTarget,
    RunSettings,
    ServerAddress,
    TcpProbe,
)
from e2e_runner.settings import EXAMPLE_SETTINGS, RUN_SETTINGS, Setting
from e2e_runner.text import cell_width, limit, one_line, plural, size

SCHEMA = "e2e-run-list/1"
_WIDEST_PATH = 44  # columns; a longer path has its details on the next line
_NOT_LISTED = frozenset({"config", "skip-websocket"})  # they steer how others are resolved


def render(plan: Plan, run: RunSettings, *, verbose: bool, width: int) -> str:
    """Lay the plan out in `width` columns. Paths are never cut; control characters are escaped."""
    parts = []
    if verbose:
        parts.append("\n".join(["Settings of the run:", *_settings(RUN_SETTINGS, run, width)]))
    if plan.examples:
        lines = [f"Would run {plural(len(plan.examples), 'example')}:"]
        names = _column(example.path for example in plan.examples)
        for example in plan.examples:
            lines += _row(example.path, _details(example), names, width)
            for problem in example.problems:
                lines += _wrap(f"bad metadata: {problem.message}", 6, width)
            if verbose:
                if reason := wants_postgres(example):
                    lines += _wrap(f"wants PostgreSQL: {reason}", 6, width)
                lines += _settings(EXAMPLE_SETTINGS, example.settings, width)
        parts.append("\n".join(lines))
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


def document(plan: Plan, run: RunSettings, *, verbose: bool) -> dict[str, Any]:
    """Make the document of ``--json``; `e2e_runner.cli.list_` describes it."""
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "root": str(run.root),
        "config": str(run.config_file) if run.config_file else None,
        "python": run.python,
        "examples": [_example(example, verbose=verbose) for example in plan.examples],
        "deselected": [
            {**_example(each.example, verbose=verbose), "reason": each.reason}
            for each in plan.deselected
        ],
        "not_examples": [{"path": each.path, "reason": each.reason} for each in plan.not_examples],
        "warnings": list(plan.warnings),
    }
    if verbose:
        result["settings"] = _with_origins(RUN_SETTINGS, run)
    return result


# --- for people ----------------------------------------------------------------------------------


def _details(example: Example) -> str:
    settings = example.settings
    parts = [limit(settings.timeout)]
    if settings.ports:
        parts.append(f"needs port {', '.join(map(str, settings.ports))}")
    if example.found_ports:
        parts.append(f"uses port {', '.join(map(str, example.found_ports))}")
    if settings.serve is not None:
        parts.append("server")
    if wants_postgres(example):
        names = " ".join(each.name for each in settings.databases)
        parts.append(f"PostgreSQL: {names}" if names else "PostgreSQL")
    if settings.tags:
        parts.append(" ".join(settings.tags))
    if example.companions:
        parts.append("with " + ", ".join(each.path for each in example.companions))
    return "; ".join(parts)


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


def _example(example: Example, *, verbose: bool) -> dict[str, Any]:
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
    return str(value) if isinstance(value, str | Path) else value


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
