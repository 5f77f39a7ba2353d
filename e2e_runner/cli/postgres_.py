"""``e2e-run postgres [FOLDER]``: serve what a run has kept, or a fresh PostgreSQL, until Ctrl-C.

The only line on stdout is the URL of the server with its password, as soon as it answers; all else is
on stderr. The exit code is 0 when it was ended after that, by Ctrl-C, SIGTERM or SIGHUP or by
shutting the server down; 2 when FOLDER is no kept server; 3 when it cannot be had, or ends by itself;
130, 143 or 129 when a signal came before it answered.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e2e_runner.cli.options import take_environment
from e2e_runner.errors import SetupError

if TYPE_CHECKING:
    from e2e_runner.kept_cluster import Kept
    from e2e_runner.serve_postgres import Serving

_SIGNALLED = 128


@click.command("postgres")
@click.argument("folder", required=False, metavar="[FOLDER]")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(1, 65535),
    help="Listens on this port of 127.0.0.1.  [default: one that is free]",
)
@click.pass_context
def postgres_command(context: click.Context, /, folder: str | None, *, port: int | None) -> None:
    """Serve the databases that --keep-databases left in FOLDER, or a fresh PostgreSQL, until Ctrl-C.

    The first line is the address to connect to. What is changed in FOLDER stays there; a fresh server
    leaves nothing.
    """
    from e2e_runner.supervise.launch import Spawner

    with contextlib.closing(Spawner()) as spawner:  # it starts while the rest is imported
        import asyncio

        from e2e_runner.kept_cluster import read_kept
        from e2e_runner.serve_postgres import serve

        kept = None if folder is None else read_kept(_absolute(folder))
        early = asyncio.run(
            serve(
                spawner,
                kept,
                port=port,
                environ=take_environment(),
                tell=lambda serving: _tell(serving, kept),
            )
        )
    context.exit(0 if early is None else _SIGNALLED + early)


def _absolute(folder: str) -> Path:
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise SetupError(
            f"{folder} cannot be used: {error}", remedy="name another folder"
        ) from error


def _tell(serving: "Serving", kept: "Kept | None") -> None:
    from e2e_runner.addresses import to_url
    from e2e_runner.text import one_line

    try:
        click.echo(to_url(serving.address, with_password=True))
    except OSError as error:
        raise SetupError(
            f"The address of the server cannot be written: {error.strerror}",
            remedy="see where its output goes",
        ) from error
    lines = [f"PostgreSQL {serving.version}, {serving.where},"]
    if kept is None:
        lines[0] += " is fresh, and leaves nothing behind."
    else:
        lines[0] += f" serves {one_line(str(kept.folder))}, where changes stay."
        if serving.problem:
            lines.append(f"Its databases cannot be listed: {one_line(serving.problem)}")
        elif serving.databases:
            lines.append("Its databases:")
        for name in serving.databases:
            url = to_url(serving.address, with_password=True, database=name)
            lines.append(f"  {one_line(name)}: {url}")
    lines.append("Ctrl-C ends it.")
    with contextlib.suppress(OSError):
        click.echo("\n".join(lines), err=True)
