"""``e2e-run sweep-dbs``: list leaked databases, say why each is one, and only then drop them.

``--json`` prints one document::

    {"schema": "e2e-run-sweep/1",
     "server": {"address": "maria@db.example:5432", "version": "15.18", "source": "DATABASE_URL"},
     "dry_run": false, "interrupted": false, "exit_code": 0,
     "refusal": "",                      not empty: nothing was dropped, and why
     "databases": [{
       "name": "test_e2e_20260131_120000_0a1b2c_r1", "owner": "maria", "size": bytes or null,
       "age": seconds or null, "sessions": 0, "why": "its run is over",
       "outcome": "dropped", "gone", "spared", "failed" or "left"; null where nothing was tried,
       "reason": "...", "seconds": 0.016 or null}],
     "roles": [{"name": "...", "outcome": ..., "reason": "...", "seconds": ...}],
     "spared": [{"name", "owner", "size", "age", "sessions", "why"}]}

``gone`` was dropped by somebody else meanwhile, ``spared`` was found in use right before its drop,
``left`` was not reached before an interrupt. What a user may not know of a server is null.

The exit code is 0 when nothing is left that should go; 1 when something is, because it could not be
dropped, because of ``--dry-run``, or because a person said no; 2 when nothing was tried, for want of
``--yes``, a wrong option or a pattern that matches too much; 3 when the server cannot be reached or
swept; 130 or 143 when a signal ended it.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from e2e_runner.cli.options import resolve_given
from e2e_runner.errors import E2ERunError, UsageError
from e2e_runner.model import PostgresMode, RunSettings, ServerAddress, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from e2e_runner.report.sweep import SweptServer
    from e2e_runner.sweep import Emit, Survey
    from e2e_runner.sweep_plan import Criteria, Swept

_SIGNALLED = 128


def _parsed(kind: str) -> Any:
    """Make the callback of an option whose text one of `e2e_runner.parsers` reads."""

    def callback(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
        from e2e_runner import parsers

        parse = getattr(parsers, kind)
        try:
            if isinstance(value, tuple):
                return tuple(map(parse, value))
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None

    return callback


@click.command("sweep-dbs")
@click.option("--dry-run", is_flag=True, help="Lists what would go, and drops nothing.")
@click.option("-y", "--yes", is_flag=True, help="Drops without asking.")
@click.option(
    "--pattern",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    callback=_parsed("parse_database_pattern"),
    help="Takes databases of this name too: the beginning of names (4 characters or more), or a "
    "glob of whole names when it has a *; no other character is special. Repeatable; adds to "
    "`postgres.patterns` of the config.",
)
@click.option(
    "--older-than",
    metavar="DURATION",
    callback=_parsed("parse_duration"),
    help="Spares what is younger, or of unknown age.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="Refuses a pattern that matches more databases than this; given, a pattern may match all "
    "databases of the server.  [default: 100]",
)
@click.option("--force", is_flag=True, help="Ends the sessions of what it drops.")
@click.option(
    "--postgres",
    metavar="URL|env",
    help="Names the server.  [default: E2E_RUN_POSTGRES, the config, DATABASE_URL, PG*]",
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON document.")
@click.option("--config", metavar="PATH", help="Reads this configuration file.")
@click.pass_context
def sweep_command(
    context: click.Context,
    /,
    *,
    dry_run: bool,
    yes: bool,
    patterns: tuple[str, ...],
    older_than: float | None,
    limit: int | None,
    force: bool,
    postgres: str | None,
    as_json: bool,
    config: str | None,
) -> None:
    """Drop the databases and roles that runs left behind on a PostgreSQL server.

    Those are the databases that a run made which is over by now, and the databases whose names match
    a pattern. First they are listed with the reason, next to those that stay. A database of a
    live run, a template, one that the config protects, one with a replication slot, subscription or
    prepared transaction, and, without --force, one with sessions are never dropped.
    """
    from e2e_runner.sweep_plan import Criteria
    from e2e_runner.text import one_line

    # PATH, so that a project without a folder of examples has databases all the same.
    resolved = resolve_given({"postgres": postgres, "config": config}, (".",))
    for warning in resolved.warnings:
        click.echo(f"warning: {one_line(warning)}", err=True)
    server = choose_server(resolved.run, os.environ)
    settings = resolved.run.postgres
    criteria = Criteria(
        patterns=tuple(dict.fromkeys((*settings.patterns, *patterns))),
        protect=settings.protect,
        connected=server.application,
        force=force,
        older_than=older_than,
        limit=limit,
    )
    command = _Command(
        run=resolved.run,
        server=server,
        dry_run=dry_run,
        yes=yes,
        can_ask=not as_json and sys.stdin.isatty() and sys.stderr.isatty(),
    )
    context.exit(command.as_json(criteria) if as_json else command.as_text(criteria))


# --- the server ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The server to sweep, what named it, and the names of the application's own databases."""

    address: ServerAddress
    source: str
    application: frozenset[str]


def choose_server(run: RunSettings, environ: "Mapping[str, str]") -> Choice:
    """Choose the server: flag, variable, config, then what the application uses by `environ`.

    Raises UsageError where none is named.
    """
    settings = run.postgres
    origin = run.origins["postgres.url"]
    if settings.url is None and settings.mode in _SERVERLESS:
        raise UsageError(
            f"{origin.where} says {settings.mode.value}, which is no server that lasts: "
            "there is nothing to sweep",
            remedy=f"name a server: --postgres {_EXAMPLE}, or --postgres env",
        )
    caller = _caller(environ, needed=settings.url is None and settings.admin_url is None)
    named = [settings.url, settings.admin_url, caller[0] if caller else None]
    application = frozenset(each.database for each in named if each is not None)
    if settings.url is not None and origin.source is Source.FLAG:
        address, source = settings.url, origin.where
    elif settings.admin_url is not None:
        address, source = settings.admin_url, run.origins["postgres.admin-url"].where
    elif settings.url is not None:
        address, source = settings.url, origin.where
    elif caller is not None:
        address, source = caller
    else:
        raise UsageError(
            "No PostgreSQL server is named",
            facts=(
                "neither --postgres, E2E_RUN_POSTGRES nor postgres.url in the configuration is a URL",
                "neither DATABASE_URL nor PGHOST, PGPORT, PGUSER or PGDATABASE is set",
            ),
            remedy=f"name one: --postgres {_EXAMPLE}",
        )
    return Choice(address=address, source=source, application=application)


_SERVERLESS = {PostgresMode.EMBEDDED, PostgresMode.OFF}
_EXAMPLE = "postgresql://USER@HOST:PORT/postgres"


def _caller(environ: "Mapping[str, str]", *, needed: bool) -> tuple[ServerAddress, str] | None:
    """Give what the application uses; where another server is named, broken variables are nothing.

    Unlike a run, a sweep leaves them where they are: the driver finds there which certificates
    (PGSSLROOTCERT and its like) a server that is named by URL needs.
    """
    from e2e_runner.config import caller_server

    try:
        return caller_server(environ)
    except UsageError:
        if needed:
            raise
        return None


# --- listing, asking, dropping -------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Command:
    """One call of the command."""

    run: RunSettings
    server: Choice
    dry_run: bool
    yes: bool
    can_ask: bool
    signal: int = field(default=0, init=False)  # that ended it

    def as_json(self, criteria: "Criteria") -> int:
        """Sweep, and print one document."""
        import asyncio

        from e2e_runner.report.sweep import document

        found = self._look(criteria)
        obstacle = self._obstacle(found)
        drops = obstacle is None and self._may_drop(found)
        results = asyncio.run(self._drop(found, _silent, _silent)) if drops else ()
        code = obstacle.exit_code if obstacle else self._code(found, results)
        click.echo(
            document(
                self._swept_server(found),
                found.plan,
                results,
                dry_run=self.dry_run,
                interrupted=bool(self.signal),
                exit_code=code,
            )
        )
        if obstacle:
            raise obstacle
        return code

    def as_text(self, criteria: "Criteria") -> int:
        """Sweep, and tell a person."""
        import asyncio
        import shutil

        from e2e_runner.report.display import Verbosity, use_color, use_live, use_width
        from e2e_runner.report.sink import Sink
        from e2e_runner.report.style import paint
        from e2e_runner.report.sweep import SweepConsole, header, listing

        isatty = sys.stdout.isatty()
        columns = shutil.get_terminal_size().columns if isatty else None
        width = use_width(environ=os.environ, terminal_columns=columns)
        color = use_color(self.run.color, isatty=isatty, environ=os.environ)
        sink = Sink(sys.stdout)
        found = self._look(criteria)
        lines = [header(self._swept_server(found)), [], *listing(found.plan, width=width)]
        sink.write("".join(f"{paint(line, color=color)}\n" for line in lines))
        if obstacle := self._obstacle(found):
            raise obstacle
        if not self._may_drop(found):
            return self._code(found, ())
        if not self.yes and not self._agreed(found):
            click.echo("Nothing was dropped")
            return self._code(found, ())
        console = SweepConsole(
            sink,
            found.plan,
            width=width,
            color=color,
            live=use_live(
                isatty=isatty,
                environ=os.environ,
                verbosity=Verbosity.NORMAL,
                no_capture=False,
            ),
            environ=os.environ,
        )
        try:
            results = asyncio.run(self._drop(found, console.handle, console.interrupted))
        finally:
            console.close()
        return self._code(found, results)

    def _look(self, criteria: "Criteria") -> "Survey":
        import asyncio

        from e2e_runner.sweep import look

        return asyncio.run(look(self.server.address, criteria))

    def _may_drop(self, found: "Survey") -> bool:
        return not self.dry_run and bool(found.plan.candidates or found.plan.roles)

    def _obstacle(self, found: "Survey") -> E2ERunError | None:
        """Say why nothing may be dropped; None when it may, or when there is nothing."""
        if found.plan.refusal:
            return UsageError(f"{found.plan.refusal}: nothing is dropped", remedy=found.plan.remedy)
        if self._may_drop(found) and not self.yes and not self.can_ask:
            return UsageError(
                "There is no terminal to ask on: nothing is dropped",
                remedy="look at the list, then give --yes; --dry-run only lists",
            )
        return None

    def _agreed(self, found: "Survey") -> bool:
        from e2e_runner.text import plural

        plan = found.plan
        what = [plural(len(plan.candidates), "database"), plural(len(plan.roles), "role")]
        words = " and ".join(each for each in what if not each.startswith("0 "))
        return click.confirm(f"\nDrop {words} on {self.server.address}?", err=True)

    def _code(self, found: "Survey", results: "Sequence[Swept]") -> int:
        from e2e_runner.sweep_plan import sweep_exit_code

        if self.signal:
            return _SIGNALLED + self.signal
        return sweep_exit_code(found.plan, results)

    def _swept_server(self, found: "Survey") -> "SweptServer":
        from e2e_runner.report.sweep import SweptServer

        return SweptServer(
            name=str(self.server.address), version=found.facts.version, source=self.server.source
        )

    async def _drop(
        self, found: "Survey", emit: "Emit", interrupted: "Callable[[], None]"
    ) -> "tuple[Swept, ...]":
        import asyncio

        from e2e_runner.stop import Stop
        from e2e_runner.sweep import drop

        stop = Stop()

        def asked(number: signal.Signals) -> None:
            self.signal = self.signal or number
            if stop.request(number) == 1:
                interrupted()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked, number)
        return await drop(found, emit, stop)


def _silent(*_: object) -> None:
    """Tell nobody."""
