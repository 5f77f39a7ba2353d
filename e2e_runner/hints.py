"""Causes and advice: what a failed example's output says about why, by the rules of ``rules.toml``.

Only the end of the output counts. An error that a script handled long before it failed is history;
what it died of stands in its last traceback or in its last lines. What was left behind, and a step that
took too long, have advice of their own.
"""

import functools
import re
import string
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e_runner.errors import ConfigError
from e2e_runner.model import Leak, LeakedDatabase, NetworkMode, Status
from e2e_runner.text import limit, one_line, shorten, strip_ansi

RULES_FILE = Path(__file__).with_name("rules.toml")

_TAIL = 64 * 1024  # characters
_NEAR = 30  # lines, empty ones not counted, that are the end of the output
_LONGEST_LINE = 2000  # characters; the middle of a longer line is left out
_MESSAGE_LINES = 12  # of an exception's message, its notes and hints included
_MOST_HINTS = 3
_VALUE_WIDTH = 80  # columns of a value inside an advice

_MOST_NAMES = 3  # of neighbours
# Settings of the kernel that may forbid namespaces, and values that allow them.
_FORBIDDING = {
    "kernel.apparmor_restrict_unprivileged_userns": "0",
    "kernel.unprivileged_userns_clone": "1",
    "user.max_user_namespaces": "10000",
    "user.max_net_namespaces": "10000",
}

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_FRAME = re.compile(r'  File "[^"]+", line \d+')
_RAISED = re.compile(r"(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_GROUP_MARGIN = re.compile(r"^ +[|+](?:-\+-+.*| ?)", re.MULTILINE)

_PIECE = re.compile(r"\(\?&(\w+)\)")

_FACTS = ("exception", "message", "path", "port", "python")
_LOCAL_PORT = re.compile(r"(?:\blocalhost|\b127\.0\.0\.1|\[::1\]):(\d{1,5})\b", re.ASCII)
_ANY_PORT = "PORT"
_KIND_NAMES = {str: "a text", list: "a list", bool: "true or false", int: "a whole number"}
_FIELDS: dict[str, type] = {
    "cause": str,
    "advice": str,
    "advice-isolated": str,
    "patterns": list,
    "exceptions": list,
    "statuses": list,
    "exit-codes": list,
    "signals": list,
    "decisive": bool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: the conditions that it states must all hold; the others are left open."""

    cause: str
    advice: str  # one sentence, with {names} of groups and facts
    isolated_advice: str = ""  # what is advised in its place to one in a network of its own
    patterns: tuple[re.Pattern[str], ...] = ()  # one of them is found
    exceptions: tuple[
        str, ...
    ] = ()  # the last exception is one of them; the module may be left out
    statuses: tuple[Status, ...] = ()
    exit_codes: tuple[int, ...] = ()
    signals: tuple[str, ...] = ()
    decisive: bool = False  # a root of trouble: asked before all other rules


@dataclass(frozen=True, slots=True, kw_only=True)
class HintFacts:
    """What is known about an example that is not ok."""

    output: str  # its end is enough
    status: Status
    exit_code: int | None = None
    signal: str | None = None  # "SIGSEGV"
    path: str = ""
    python: str = "python"  # the interpreter that ran it
    network: NetworkMode | None = None  # ISOLATED or HOST: where it ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why an example is not ok, as far as the rules tell."""

    cause: str | None
    hints: tuple[str, ...] = ()  # a sentence of advice each
    details: Mapping[str, str] = field(default_factory=dict)  # groups found, as in {"port": "8000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of an output, taken apart."""

    exception: str | None  # the last one's type with its module, as in "httpx.ConnectError"
    message: str
    raised: str  # the lines of the last exception itself
    traceback: str  # its traceback, with those of the exceptions that led to it
    last_lines: str  # the last lines outside that traceback


def diagnose(rules: tuple[Rule, ...], facts: HintFacts) -> Diagnosis:
    """Find the cause of a failure, and advice.

    Decisive rules are asked first, about everything near the end of the output; then the others,
    about the last exception, then its traceback, then the last lines. The first rule that holds
    gives the cause; rules of other causes that hold for the same text add their advice.
    """
    ending = read_ending(facts.output)
    everything = f"{ending.last_lines}\n{ending.traceback}"
    decisive = tuple(rule for rule in rules if rule.decisive)
    others = tuple(rule for rule in rules if not rule.decisive)
    looks = (
        (decisive, everything),
        (others, ending.raised),
        (others, ending.traceback),
        (others, ending.last_lines),
    )
    for asked, text in looks:
        found: dict[str, tuple[Rule, dict[str, str]]] = {}
        for rule in asked:
            groups = None if rule.cause in found else _match(rule, facts, ending, text)
            if groups is not None:
                found[rule.cause] = rule, groups
        if found:
            known = _known(facts, ending)
            hints = dict.fromkeys(
                _fill(_advice(rule, facts), known | groups) for rule, groups in found.values()
            )
            cause, (_, details) = next(iter(found.items()))
            return Diagnosis(cause=cause, hints=tuple(hints)[:_MOST_HINTS], details=details)
    return Diagnosis(cause=None)


def leak_advice(leaks: Collection[Leak]) -> list[str]:
    """Advise on what an example left behind, a sentence for each kind.

    >>> leak_advice([])
    []
    """
    databases = [leak for leak in leaks if isinstance(leak, LeakedDatabase)]
    advice = []
    if databases:
        it = "it" if len(databases) == 1 else "them"
        advice.append(
            f"Drop {it} in `finally`, or have `e2e_runner.kit.databases` make {it}: it drops what it"
            " made, however its block ends."
        )
    if len(databases) < len(leaks):
        advice.append(
            "Stop what the script starts in `finally`, or start it by"
            " `e2e_runner.kit.serve_command`: it stops the server, however its block ends."
        )
    return advice


def timeout_advice(path: str, timeout: float) -> str:
    """Advise on an example that was in a step when its time was over.

    >>> timeout_advice("examples/load.sh", 3)
    'Give what it waits for there a limit of its own, or raise `timeout` (3s) in its metadata.'
    """
    means = ""
    if path.endswith(".py"):
        means = " (`wait_until(..., timeout=...)` of e2e_runner.kit, `asyncio.timeout(...)`)"
    return (
        f"Give what it waits for there a limit of its own{means}, or raise `timeout`"
        f" ({limit(timeout)}) in its metadata."
    )


def flaky_advice(neighbours: Collection[str], *, other_network: bool) -> str:
    """Advise on an example that failed and then passed, by what was different the second time.

    `neighbours` ran beside it when it failed, and no more when it passed. `other_network` says that it
    failed in a network of its own and passed on that of the machine.

    >>> flaky_advice([], other_network=False)
    'Nothing was different but the time: look for what depends on time, order or chance, and wait \
for it by a condition (`wait_until` of e2e_runner.kit) instead of a pause.'
    """
    if other_network:
        return (
            'Name the services that it needs in its metadata (reach = ["HOST:PORT"]), or let it run'
            ' on the network of the machine (network = "host").'
        )
    if neighbours:
        names = ", ".join(sorted(neighbours)[:_MOST_NAMES])
        more = len(neighbours) - _MOST_NAMES
        beside = f"{names} and {more} more" if more > 0 else names
        return (
            f"It failed beside {beside}: if they share something (a file, a table, a device), name"
            ' that in the metadata of each (locks = ["NAME"]); if it needs the machine to itself, say'
            " exclusive = true."
        )
    return (
        "Nothing was different but the time: look for what depends on time, order or chance, and wait"
        " for it by a condition (`wait_until` of e2e_runner.kit) instead of a pause."
    )


def network_advice(notes: Collection[str]) -> str:
    """Advise on an example that asks for a network of its own where none is to be had.

    `notes` say why not, and name the settings of the kernel that forbid it.

    >>> network_advice(["user-namespace: unshare: Operation not permitted"])
    'Allow namespaces where e2e-run runs (its docs/isolation.md says how), or let the example run on \
the network of the machine (network = "auto" in its metadata).'
    """
    said = " ".join(notes)
    allow = "Allow namespaces where e2e-run runs (its docs/isolation.md says how)"
    for setting, value in _FORBIDDING.items():
        if setting in said:
            allow = f"Allow namespaces by `sudo sysctl --write {setting}={value}`"
            break
    return (
        f"{allow}, or let the example run on the network of the machine"
        ' (network = "auto" in its metadata).'
    )


def reach_advice(trouble: str) -> str:
    """Advise on a service that an example may reach and that did not answer.

    >>> reach_advice("localhost:6379: Connection refused")
    'A service that it may reach did not answer this machine (localhost:6379: Connection refused): \
start it, or correct `reach`.'
    """
    return (
        f"A service that it may reach did not answer this machine ({trouble}): start it, or correct "
        "`reach`."
    )


def read_ending(output: str) -> Ending:
    """Take the end of an output apart."""
    text = strip_ansi(output[-_TAIL:]).replace("\r\n", "\n").replace("\r", "\n")
    if "Exception Group Traceback" in text:
        text = _GROUP_MARGIN.sub("", text)
    lines = [_cut(line.rstrip()) for line in text.split("\n")]
    frame = max((n for n, line in enumerate(lines) if _FRAME.match(line)), default=None)
    raised = None if frame is None else _raised_after(lines, frame)
    if frame is None or raised is None or _lines_after(lines, raised) >= _NEAR:
        return Ending(
            exception=None, message="", raised="", traceback="", last_lines=_last_lines(lines)
        )
    found = _RAISED.match(lines[raised])
    end = min(raised + _MESSAGE_LINES, len(lines))
    begin = _traceback_start(lines, frame)
    return Ending(
        exception=found["type"] if found else None,
        message=(found["message"] or "") if found else "",
        raised="\n".join(lines[raised:end]),
        traceback="\n".join(lines[begin:end]),
        last_lines=_last_lines(lines[:begin] + lines[end:]),
    )


@functools.cache
def load_rules(file: Path = RULES_FILE) -> tuple[Rule, ...]:
    """Read a rule file.

    Raises ConfigError that names file, rule and field for what cannot be used.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    tables = document.pop("rule", [])
    pieces = document.pop("pieces", {})
    if document or not isinstance(tables, list):
        extra = ", ".join(sorted(document)) or "rule"
        raise ConfigError(f"{file}: {extra}: only [[rule]] tables and [pieces] are accepted")
    if not isinstance(pieces, dict) or not all(isinstance(piece, str) for piece in pieces.values()):
        raise ConfigError(f"{file}: pieces: must be a table of texts")
    return tuple(_rule(file, number, table, pieces) for number, table in enumerate(tables, 1))


def _cut(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[:half]} … {line[-half:]}"


def _raised_after(lines: list[str], frame: int) -> int | None:
    """Find the line of the exception: the first one that is not indented below its last frame."""
    for number in range(frame + 1, len(lines)):
        if lines[number] and not lines[number][0].isspace():
            return number if _RAISED.match(lines[number]) else None
    return None


def _lines_after(lines: list[str], raised: int) -> int:
    """Count what follows an exception and the indented lines of its message, as of a log in it."""
    number = raised + 1
    while number < len(lines) and lines[number][:1].isspace():
        number += 1
    return sum(map(bool, lines[number:]))


def _traceback_start(lines: list[str], frame: int) -> int:
    start = _header_before(lines, frame)
    if start is None:
        return frame  # a syntax error has no header
    while True:
        before = start - 1
        while before >= 0 and not lines[before]:
            before -= 1
        if before < 0 or not lines[before].startswith(_CHAINED):
            return start
        earlier = _header_before(lines, before)
        if earlier is None:
            return before
        start = earlier


def _header_before(lines: list[str], number: int) -> int | None:
    return next((n for n in range(number, -1, -1) if lines[n].endswith(_TRACEBACK)), None)


def _last_lines(lines: list[str]) -> str:
    return "\n".join([line for line in lines if line][-_NEAR:])


def _match(rule: Rule, facts: HintFacts, ending: Ending, text: str) -> dict[str, str] | None:
    """Give the named groups that were found if `rule` holds."""
    holds = (
        (not rule.statuses or facts.status in rule.statuses)
        and (not rule.exit_codes or facts.exit_code in rule.exit_codes)
        and (not rule.signals or facts.signal in rule.signals)
        and (not rule.exceptions or _is_one_of(ending.exception, rule.exceptions))
    )
    if not holds or not rule.patterns:
        return {} if holds else None
    for pattern in rule.patterns:
        if found := pattern.search(text):
            return found.groupdict(default="")
    return None


def _known(facts: HintFacts, ending: Ending) -> dict[str, str]:
    return {
        "exception": ending.exception or "",
        "message": ending.message,
        "path": facts.path,
        "port": _only_port(ending),
        "python": facts.python,
    }


def _only_port(ending: Ending) -> str:
    """Give the port of this machine that the end of the output names, if it is one alone."""
    named = set(_LOCAL_PORT.findall(f"{ending.traceback}\n{ending.last_lines}"))
    return named.pop() if len(named) == 1 else _ANY_PORT


def _is_one_of(exception: str | None, names: tuple[str, ...]) -> bool:
    return exception is not None and (exception in names or exception.rpartition(".")[2] in names)


def _advice(rule: Rule, facts: HintFacts) -> str:
    isolated = facts.network is NetworkMode.ISOLATED
    return rule.isolated_advice if isolated and rule.isolated_advice else rule.advice


def _fill(advice: str, values: Mapping[str, str]) -> str:
    shown = {name: shorten(one_line(value or "?"), _VALUE_WIDTH) for name, value in values.items()}
    return advice.format_map(shown)


def _rule(file: Path, number: int, table: Any, pieces: Mapping[str, str]) -> Rule:
    where = f"{file}: rule {number}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a [[rule]] table")
    if isinstance(table.get("cause"), str):
        where += f" ({table['cause']})"
    for name, value in table.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise ConfigError(f"{where}: {name}: unknown field; accepted: {', '.join(_FIELDS)}")
        if not isinstance(value, kind):
            raise ConfigError(f"{where}: {name}: must be {_KIND_NAMES[kind]}")
    for name in ("cause", "advice"):
        if not table.get(name):
            raise ConfigError(f"{where}: {name}: is missing")
    if not table.keys() & {"patterns", "exceptions", "exit-codes", "signals"}:
        raise ConfigError(
            f"{where}: has no condition; one of patterns, exceptions, exit-codes, signals is needed"
        )
    patterns = tuple(
        _pattern(where, text, pieces) for text in _items(where, table, "patterns", str)
    )
    for name in table.keys() & {"advice", "advice-isolated"}:
        _check_advice(f"{where}: {name}", table[name], patterns)
    return Rule(
        cause=table["cause"],
        advice=table["advice"],
        isolated_advice=table.get("advice-isolated", ""),
        patterns=patterns,
        exceptions=_items(where, table, "exceptions", str),
        statuses=tuple(_status(where, name) for name in _items(where, table, "statuses", str)),
        exit_codes=_items(where, table, "exit-codes", int),
        signals=_items(where, table, "signals", str),
        decisive=table.get("decisive", False),
    )


def _items(where: str, table: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    items = table.get(name, [])
    for item in items:
        if type(item) is not kind:
            raise ConfigError(f"{where}: {name}: {item!r} is not {_KIND_NAMES[kind]}")
    return tuple(items)


def _pattern(where: str, text: str, pieces: Mapping[str, str]) -> re.Pattern[str]:
    for name in _PIECE.findall(text):
        if name not in pieces:
            known = ", ".join(pieces) or "none"
            raise ConfigError(f"{where}: patterns: {text!r}: no piece {name}; known: {known}")
    try:
        return re.compile(_PIECE.sub(lambda found: pieces[found[1]], text), re.MULTILINE)
    except re.error as error:
        raise ConfigError(
            f"{where}: patterns: {text!r} is not a regular expression: {error}"
        ) from error


def _status(where: str, name: str) -> Status:
    try:
        return Status(name)
    except ValueError as error:
        accepted = ", ".join(Status)
        raise ConfigError(f"{where}: statuses: {name!r}; accepted: {accepted}") from error


def _check_advice(where: str, advice: str, patterns: tuple[re.Pattern[str], ...]) -> None:
    known = set(_FACTS)
    if patterns:
        known |= set.intersection(*(set(pattern.groupindex) for pattern in patterns))
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(advice) if name is not None}
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write {{{{ for a brace") from error
    for name in sorted(names - known):
        raise ConfigError(
            f"{where}: {{{name}}} is neither a fact ({', '.join(_FACTS)}) "
            "nor a named group of every pattern"
        )
