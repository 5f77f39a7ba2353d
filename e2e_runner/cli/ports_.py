"""``e2e-run ports``: who listens on the ports that the examples use.

``--json`` prints one document::

    {"schema": "e2e-run-ports/1",
     "ports": [{
       "port": 8000, "state": "taken" or "free",
       "owners": [{"pid": 4242 or null, "command": "python server.py", "user": "maria",
                   "started": "2026-01-31T12:00:00+00:00" or null, "uid": 1000 or null,
                   "addresses": ["127.0.0.1"], "earlier_run": "ID" or null, "note": "..."}],
       "used_by": ["examples/example_orders.py"]}]}

A port is free when an example could have it: a server on another address than 127.0.0.1, ::1 or all
is an owner of a free port. The exit code is 0.
"""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from e2e_runner.cli.options import resolve_given
from e2e_runner.errors import NothingSelected
from e2e_runner.model import Example, Plan, PortOwner
from e2e_runner.text import age, cell_width, one_line, shorten

if TYPE_CHECKING:
    from e2e_runner.config import Resolved

SCHEMA = "e2e-run-ports/1"
_PLAIN_WIDTH = 80
_NARROWEST = 8  # columns that command and examples keep on a narrow terminal
_HEADINGS = ("PORT", "STATE", "PID", "USER", "AGE", "COMMAND", "USED BY")
_FLEXIBLE = 2  # the last columns share what room is left
_NOTHING = (
    "The examples declare no ports, and none were found in their sources. "
    "Name ports to look at any: e2e-run ports 8000"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortUse:
    """A port, who holds it, and the examples that use it."""

    port: int
    taken: bool
    owners: tuple[PortOwner, ...]
    used_by: tuple[str, ...]


@click.command("ports")
@click.argument("numbers", metavar="[PORT]...", nargs=-1, type=click.IntRange(1, 65535))
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON document.")
@click.option("--config", metavar="PATH", help="Reads this configuration file.")
def ports_command(numbers: tuple[int, ...], *, as_json: bool, config: str | None) -> None:
    """Show who listens on the ports that the examples use, or on the PORTs named."""
    import time

    resolved, plan = _plan({"config": config}, needed=not numbers)
    uses = look(numbers, plan, resolved)
    if as_json:
        import json

        click.echo(json.dumps(document(uses), indent=2))
    else:
        click.echo(render(uses, now=time.time(), width=_width()))


def look(numbers: Sequence[int], plan: Plan, resolved: "Resolved | None") -> tuple[PortUse, ...]:
    """Look at the ports `numbers`, or at those of all examples where none is given."""
    from e2e_runner import ports

    used_by = _used_by(plan)
    wanted = tuple(dict.fromkeys(numbers)) or tuple(sorted(used_by))
    earlier = None
    if resolved is not None:
        from e2e_runner.rundir import is_live

        earlier = functools.partial(
            ports.earlier_run,
            project=str(resolved.run.root),
            is_live=functools.partial(is_live, resolved.run.state_dir),
        )
    taken = ports.taken(wanted, earlier=earlier)
    owners = ports.owners(wanted, earlier=earlier)
    return tuple(
        PortUse(
            port=port,
            taken=port in taken,
            owners=tuple(owner for owner in owners if owner.port == port),
            used_by=used_by.get(port, ()),
        )
        for port in wanted
    )


def render(uses: Iterable[PortUse], *, now: float, width: int) -> str:
    """Lay out a table `width` columns wide; `now` is in seconds since the epoch."""
    rows: list[tuple[tuple[str, ...], str]] = []
    for use in uses:
        cells = (str(use.port), "taken" if use.taken else "free")
        examples = one_line(", ".join(use.used_by))
        for number, owner in enumerate(use.owners or (None,)):
            first = cells if number == 0 else ("", "")
            rows.append(
                ((*first, *_owner_cells(owner, now), examples if number == 0 else ""), _note(owner))
            )
    if not rows:
        return _NOTHING
    widths = _widths([_HEADINGS, *(cells for cells, _ in rows)], width)
    lines = [_line(_HEADINGS, widths)]
    for row, note in rows:
        lines.append(_line(row, widths))
        lines += _wrapped(note, width)
    return "\n".join(lines)


def document(uses: Iterable[PortUse]) -> dict[str, Any]:
    """Make the document of ``--json``, which the docstring of this module describes."""
    return {
        "schema": SCHEMA,
        "ports": [
            {
                "port": use.port,
                "state": "taken" if use.taken else "free",
                "owners": [_owner(owner) for owner in use.owners],
                "used_by": list(use.used_by),
            }
            for use in uses
        ],
    }


def _plan(flags: Mapping[str, object], *, needed: bool) -> "tuple[Resolved | None, Plan]":
    """Resolve and plan; without examples that are `needed`, ports named can still be looked at."""
    from e2e_runner.discovery import make_plan

    try:
        resolved = resolve_given(flags, ())
    except NothingSelected:
        if needed:
            raise
        return None, Plan(examples=())
    return resolved, make_plan(resolved)


def _used_by(plan: Plan) -> dict[int, tuple[str, ...]]:
    found: dict[int, dict[str, None]] = {}
    for top in (*plan.examples, *(each.example for each in plan.deselected)):
        for example in _with_companions(top):
            for port in example.ports:
                found.setdefault(port, {})[example.path] = None
    return {port: tuple(paths) for port, paths in found.items()}


def _with_companions(example: Example) -> Iterable[Example]:
    yield example
    for companion in example.companions:
        yield from _with_companions(companion)


def _owner_cells(owner: PortOwner | None, now: float) -> tuple[str, str, str, str]:
    """Give pid, user, age and command."""
    if owner is None:
        return "", "", "", ""
    process = owner.process
    if process is None:
        return "?", "", "", "?"
    since = age(now - process.started)
    return str(process.pid), one_line(process.user), since, one_line(process.command)


def _note(owner: PortOwner | None) -> str:
    if owner is None:
        return ""
    left = f"left by an earlier run ({owner.earlier_run})" if owner.earlier_run else ""
    return one_line("; ".join(part for part in (left, owner.note) if part))


def _widths(rows: Collection[Sequence[str]], width: int) -> list[int]:
    """Give each column what its widest cell needs; the flexible ones share the rest."""
    needs = [max(map(cell_width, column)) for column in zip(*rows, strict=True)]
    fixed, flexible = needs[:-_FLEXIBLE], needs[-_FLEXIBLE:]
    room = width - sum(fixed) - 2 * (len(needs) - 1)
    command, examples = flexible
    if command + examples > room:
        half = max(room // 2, _NARROWEST)
        command = min(command, max(half, room - examples))
        examples = min(examples, max(room - command, _NARROWEST))
    return [*fixed, command, examples]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = (shorten(cell, width) for cell, width in zip(cells, widths, strict=True))
    padded = (
        text + " " * (width - cell_width(text)) for text, width in zip(shown, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _wrapped(note: str, width: int) -> list[str]:
    import textwrap

    indent = " " * 7
    return textwrap.wrap(note, max(width, 40), initial_indent=indent, subsequent_indent=indent)


def _owner(owner: PortOwner) -> dict[str, Any]:
    process = owner.process
    return {
        "pid": process.pid if process else None,
        "command": process.command if process else "",
        "user": process.user if process else "",
        "started": datetime.fromtimestamp(process.started, UTC).isoformat() if process else None,
        "uid": owner.uid,
        "addresses": list(owner.addresses),
        "earlier_run": owner.earlier_run,
        "note": owner.note,
    }


def _width() -> int:
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PLAIN_WIDTH
