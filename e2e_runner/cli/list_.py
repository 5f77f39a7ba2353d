"""``e2e-run list``: what would run, what would not and why.

``--json`` prints one document::

    {"schema": "e2e-run-list/1",
     "root": "/project", "config": "/project/pyproject.toml" or null, "python": "/usr/bin/python3",
     "shard": {"index": 1, "count": 2, "basis": "3f9a2c", "by": "timings"} or null,
     "last_failed": false,
     "examples": [{
       "path": "examples/a.py", "file": "/project/examples/a.py",
       "command": ["/usr/bin/python3", "/project/examples/a.py"], "cwd": "/project/examples",
       "timeout": 60.0, "grace": 5.0, "tags": ["websocket"], "ports": [8000], "found_ports": [],
       "learned_ports": [8765], "last_duration": 1.93 or null, "failed_last_time": false,
       "network": "auto", "network_learned": "host" or null, "reach": ["localhost:6379"],
       "exclusive": false, "locks": ["gpu"], "retries": 0,
       "serve": "tcp://127.0.0.1:8000" or null, "needs": ["examples/server.py"], "expect_exit": 0,
       "postgres": "imports asyncpg" or null, "databases": ["orm"],
       "problems": ["examples/a.py:4: timout: unknown key; ..."]}],
     "deselected": [{... as above, "reason": "tagged websocket (--skip)"}],
     "not_examples": [{"path": "examples/demo_data.py", "reason": "imported by a.py"}],
     "warnings": ["..."]}

Examples are in the order of their paths. ``ports`` are declared, ``found_ports`` are literals of the
source, ``learned_ports`` others that it was seen to listen on. ``last_duration`` is what it takes as a
rule; null where no run is known. ``network`` is what was asked for (auto, isolated or host), and
``network_learned`` is "host" where earlier runs showed that it needs that. ``postgres`` says why the example wants PostgreSQL, ``databases`` which
named ones it then gets. Seconds are floats. With ``-v`` the document and each
example also have ``"settings": {"timeout": {"value": 60.0, "source": "default", "where": ""}, ...}``,
where the source is flag, environment, metadata, override, config or default, and the document has
``"isolation": {"network": "namespace", "processes": "cgroup", "notes": [], "network_notes": []}``, the
tiers that this machine gives and notes why no better ones, ``"jobs"``, how many examples would run at
a time, and ``"postgres"``, in words, what those get that want it, or null.

The exit code is 0, or 4 when nothing would run; a shard may be empty.
"""

import os
from typing import Any

import click

from e2e_runner.cli.options import list_options, resolve_given

_PLAIN_WIDTH = 80
_NOTHING_SELECTED = 4


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON document.")
@list_options
@click.pass_context
def list_command(
    context: click.Context, /, paths: tuple[str, ...], *, as_json: bool, **flags: Any
) -> None:
    """Show what would run, what would not and why; -v shows where each setting comes from."""
    from e2e_runner.cli.listing import document, render
    from e2e_runner.cli.planning import make_planned

    resolved = resolve_given(flags, paths)
    planned = make_planned(resolved, environ=os.environ, mend=False)
    plan = planned.plan
    verbose = bool(resolved.run.verbose)
    machine = None
    if verbose:
        from e2e_runner.cli.probing import probe
        from e2e_runner.errors import SetupError

        try:
            machine = probe(plan, resolved.run)
        except SetupError as error:
            click.echo(f"warning: a run cannot be set up here: {error}", err=True)
    if as_json:
        import json

        made = document(plan, resolved.run, past=planned.past, verbose=verbose, machine=machine)
        click.echo(json.dumps(made, indent=2))
    else:
        from e2e_runner.text import one_line

        for warning in plan.warnings:
            click.echo(f"warning: {one_line(warning)}", err=True)
        shown = render(
            plan, resolved.run, past=planned.past, verbose=verbose, width=_width(), machine=machine
        )
        click.echo(shown)
    if not plan.examples and plan.cut is None:
        context.exit(_NOTHING_SELECTED)


def _width() -> int:
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PLAIN_WIDTH
