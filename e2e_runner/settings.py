"""Every setting of e2e-run, in one table.

The options of the command line, the environment variables, the checks of configuration and metadata
and the reference in the README are all made from `SETTINGS`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from e2e_runner import kinds
from e2e_runner.kinds import Kind
from e2e_runner.model import (
    Capture,
    Color,
    Containment,
    NetworkMode,
    OnPortConflict,
    PostgresMode,
    PostgresScope,
)

ENVIRONMENT_PREFIX = "E2E_RUN_"


class Scope(StrEnum):
    """Where a setting may be given. What metadata may say, an override may say too."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    CONFIG = "config"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting. `help` is one sentence; `default_text` says a default that is no plain value.

    A dot in the name stands for a table in the configuration: ``postgres.url`` is the key ``url`` of
    ``[tool.e2e-run.postgres]``. `outside` is the name in flags and variables where it is another.
    """

    name: str
    kind: Kind
    help: str
    scopes: frozenset[Scope]
    default: Any = None
    default_text: str = ""
    flags: tuple[str, ...] = ()
    outside: str = ""

    @property
    def parameter(self) -> str:
        """The name as a Python identifier: the key in the mapping of flags."""
        return re.sub(r"[-.]", "_", self.outside or self.name)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.parameter.upper()

    @property
    def default_words(self) -> str:
        """The default in words; empty for a switch that is off."""
        if self.default_text or self.default is False:
            return self.default_text
        return str(self.default)


_F, _E, _C, _M = Scope.FLAG, Scope.ENVIRONMENT, Scope.CONFIG, Scope.METADATA


def _setting(name: str, kind: Kind, help_: str, *scopes: Scope, **more: Any) -> Setting:
    return Setting(name=name, kind=kind, help=help_, scopes=frozenset(scopes), **more)


# Settings of the whole run: the fields of `RunSettings` and of its `PostgresSettings`, `config` and
# `skip-websocket`.
RUN_SETTINGS = (
    _setting(
        "config",
        kinds.PATH,
        "Reads this configuration file.",
        *(_F, _E),
        flags=("--config",),
        default_text="the nearest pyproject.toml with a [tool.e2e-run] table, or e2e-run.toml",
    ),
    _setting(
        "paths",
        kinds.PATHS,
        "Names the files and folders to search when the command line names none.",
        _C,
        default_text='["examples"]',
    ),
    _setting(
        "python",
        kinds.PATH,
        "Runs Python scripts with this interpreter.",
        *(_F, _E, _C),
        flags=("--python",),
        default_text="the active virtual environment's, else .venv beside the config, "
        "else the one that runs e2e-run",
    ),
    _setting(
        "keyword",
        kinds.NAME,
        "Selects the examples whose path contains this text, in any case.",
        *(_F, _E),
        flags=("-k",),
        default_text="all",
    ),
    _setting(
        "only",
        kinds.SELECTED_TAGS,
        "Selects the examples with this tag.",
        *(_F, _E, _C),
        flags=("--only",),
        default=(),
        default_text="all",
    ),
    _setting(
        "skip",
        kinds.TAGS,
        "Leaves out the examples with this tag.",
        *(_F, _E, _C),
        flags=("--skip",),
        default=(),
        default_text="none",
    ),
    _setting(
        "skip-websocket",
        kinds.FLAG,
        "Leaves out WebSocket examples: the same as --skip websocket.",
        *(_F, _E),
        flags=("--skip-websocket",),
        default=False,
    ),
    _setting(
        "include",
        kinds.GLOBS,
        "Searches folders for these files besides *.py.",
        _C,
        default=(),
        default_text="none",
    ),
    _setting(
        "exclude",
        kinds.GLOBS,
        "Skips these files and folders of a searched folder.",
        *(_F, _E, _C),
        flags=("--exclude",),
        default=(),
        default_text="none",
    ),
    _setting(
        "interpreters",
        kinds.INTERPRETERS,
        "Names the command that runs files with a suffix.",
        _C,
        default={
            ".bash": "bash",
            ".js": "node",
            ".mjs": "node",
            ".php": "php",
            ".pl": "perl",
            ".rb": "ruby",
            ".sh": "bash",
        },
        default_text="bash, node, php, perl and ruby for their usual suffixes",
    ),
    _setting(
        "fail-on-output",
        kinds.REGEXES,
        "Fails an example whose output matches this pattern.",
        _C,
        default=(),
        default_text="none",
    ),
    _setting(
        "strict",
        kinds.FLAG,
        "Counts leaked and flaky examples as not ok.",
        *(_F, _E, _C),
        flags=("--strict",),
        default=False,
    ),
    _setting(
        "fail-fast",
        kinds.FLAG,
        "Ends the run at the first example that is not ok.",
        *(_F, _E, _C),
        flags=("-x", "--fail-fast"),
        default=False,
    ),
    _setting(
        "max-fail",
        kinds.count(least=1),
        "Ends the run when this many examples are not ok.",
        *(_F, _E, _C),
        flags=("--max-fail",),
        default_text="no limit",
    ),
    _setting(
        "jobs",
        kinds.JOBS,
        "Runs this many examples at a time.",
        *(_F, _E, _C),
        flags=("-j", "--jobs"),
        default_text="auto: one for each processor, as far as they cannot disturb each other",
    ),
    _setting(
        "last-failed",
        kinds.FLAG,
        "Selects the examples whose last verdict was not ok.",
        *(_F, _E),
        flags=("--last-failed",),
        default=False,
    ),
    _setting(
        "repeat",
        kinds.count(least=1),
        "Runs each example this often; it passes when all of these do.",
        *(_F, _E),
        flags=("--repeat",),
        default=1,
    ),
    _setting(
        "shard",
        kinds.SHARD,
        "Runs one part of the suite, cut into parts that take about the same time.",
        *(_F, _E),
        flags=("--shard",),
        default_text="all",
    ),
    _setting(
        "timings",
        kinds.PATH,
        "Balances shards by the durations in this file: a json report, or a table of path and seconds.",
        *(_F, _E, _C),
        flags=("--timings",),
        default_text="the history; in CI none",
    ),
    _setting(
        "on-port-conflict",
        kinds.one_of(OnPortConflict, OnPortConflict),
        "Chooses what happens to an example whose declared port is taken.",
        *(_F, _E, _C),
        flags=("--on-port-conflict",),
        default=OnPortConflict.FAIL,
    ),
    _setting(
        "free-ports",
        kinds.FLAG,
        "Stops what an earlier run of this project left on a needed port.",
        *(_F, _E, _C),
        flags=("--free-ports",),
        default=False,
    ),
    _setting(
        "containment",
        kinds.one_of(
            ("auto", *Containment), lambda name: None if name == "auto" else Containment(name)
        ),
        "Chooses how an example's processes are held together.",
        *(_F, _E, _C),
        flags=("--containment",),
        default_text="auto",
    ),
    _setting(
        "max-output",
        kinds.SIZE,
        "Keeps at most this much output of an example, dropping the middle.",
        *(_F, _E, _C),
        flags=("--max-output",),
        default=64 * 1024**2,
        default_text="64MiB",
    ),
    _setting(
        "capture",
        kinds.one_of(Capture, Capture),
        "Chooses one log in the order written, or one for each output stream.",
        *(_E, _C),
        default=Capture.MERGED,
    ),
    _setting(
        "no-capture",
        kinds.FLAG,
        "Shows the output of examples while they run.",
        *(_F, _E),
        flags=("-s", "--no-capture"),
        default=False,
    ),
    _setting(
        "keep-runs",
        kinds.count(least=1),
        "Keeps the logs of this many runs.",
        *(_E, _C),
        default=20,
    ),
    _setting(
        "report",
        kinds.REPORTS,
        "Writes a report: json, jsonl or junit.",
        *(_F, _E, _C),
        flags=("--report",),
        default=(),
        default_text="none",
    ),
    _setting(
        "verbose",
        kinds.count(least=0),
        "Shows what is skipped and each phase; in `list`, where settings come from.",
        *(_F, _E),
        flags=("-v", "--verbose"),
        default=0,
    ),
    _setting(
        "quiet",
        kinds.FLAG,
        "Shows only what is not ok, and the totals.",
        *(_F, _E),
        flags=("-q", "--quiet"),
        default=False,
    ),
    _setting(
        "postgres.url",
        kinds.SERVER,
        "Chooses the PostgreSQL server of examples that want one: one of e2e-run's own (embedded), "
        "the one that DATABASE_URL and PG* name (env), none (off), or that of a URL.",
        *(_F, _E, _C),
        flags=("--postgres",),
        outside="postgres",
        default=PostgresMode.AUTO,
        default_text="auto: the URL given by flag, variable or config, else embedded",
    ),
    _setting(
        "postgres.admin-url",
        kinds.SERVER_URL,
        "Names the server and a user for creating and dropping databases, past a pooler.",
        *(_E, _C),
        default_text="the same as for examples",
    ),
    _setting(
        "postgres.scope",
        kinds.one_of(PostgresScope, PostgresScope),
        "Gives each example an embedded server of its own, or the whole run one.",
        *(_E, _C),
        default=PostgresScope.EXAMPLE,
    ),
    _setting(
        "postgres.env",
        kinds.TEMPLATES,
        "Sets the variables in which the application looks for its server.",
        _C,
        default={},
        default_text="none",
    ),
    _setting(
        "postgres.patterns",
        kinds.DATABASE_PATTERNS,
        "Names the databases that `sweep-dbs` may drop, besides those that e2e-run makes.",
        _C,
        default=(),
        default_text="none",
    ),
    _setting(
        "postgres.protect",
        kinds.PROTECTED,
        "Names the databases that are never dropped.",
        _C,
        default=(),
        default_text="postgres and the templates, always",
    ),
    _setting(
        "keep-databases",
        kinds.FLAG,
        "Keeps the databases of examples that are not ok, and prints their addresses.",
        *(_F, _E, _C),
        flags=("--keep-databases",),
        default=False,
    ),
    _setting(
        "databases",
        kinds.DATABASES,
        "Defines the databases that are made for each attempt of an example.",
        _C,
        default=(),
        default_text="one without a name",
    ),
    _setting(
        "color",
        kinds.one_of(Color, Color),
        "Chooses when colours are used.",
        *(_F, _E, _C),
        flags=("--color",),
        default=Color.AUTO,
    ),
)

# Settings of one example: the fields of `ExampleSettings`.
EXAMPLE_SETTINGS = (
    _setting(
        "timeout",
        kinds.DURATION,
        "Stops an example after this time.",
        *(_F, _E, _C, _M),
        flags=("-t", "--timeout"),
        default=60.0,
        default_text="60s",
    ),
    _setting(
        "grace",
        kinds.GRACE,
        "Leaves a stopped example this time to clean up before it is killed.",
        *(_F, _E, _C, _M),
        flags=("--grace",),
        default=5.0,
        default_text="5s",
    ),
    _setting(
        "ports",
        kinds.PORTS,
        "Declares the TCP ports that must be free before the example starts.",
        *(_C, _M),
        default=(),
        default_text="none",
    ),
    _setting(
        "tags",
        kinds.TAGS,
        "Adds tags to those inferred from the script's name and imports.",
        *(_C, _M),
        default=(),
        default_text="none",
    ),
    _setting(
        "env",
        kinds.ENVIRONMENT,
        "Sets an environment variable for examples.",
        *(_F, _C, _M),
        flags=("--env",),
        default={},
        default_text="none",
    ),
    _setting(
        "args",
        kinds.ARGUMENTS,
        "Gives the script these arguments.",
        _M,
        default=(),
        default_text="none",
    ),
    _setting(
        "stdin",
        kinds.TEXT,
        "Gives the script this text on standard input.",
        _M,
        default_text="/dev/null",
    ),
    _setting(
        "cwd",
        kinds.PATH,
        'Runs the script in this folder, relative to its own; "project" is the config\'s folder.',
        *(_C, _M),
        default_text="the script's folder",
    ),
    _setting(
        "serve",
        kinds.PROBE,
        "Declares a server: it is served once this answers, then stopped.",
        _M,
        default_text="not a server",
    ),
    _setting(
        "needs",
        kinds.PATHS,
        "Starts these scripts first and stops them after; relative to the script's folder.",
        _M,
        default=(),
        default_text="none",
    ),
    _setting(
        "skip",
        kinds.NAME,
        "Does not run the example, for this reason.",
        _M,
        default_text="run it",
    ),
    _setting(
        "expect-exit",
        kinds.EXIT_CODE,
        "Passes the example when it ends with this exit code.",
        _M,
        default=0,
    ),
    _setting(
        "interpreter",
        kinds.COMMAND,
        "Hands the script to this command.",
        _M,
        default_text="by the suffix",
    ),
    _setting(
        "network",
        kinds.one_of(NetworkMode, NetworkMode),
        "Gives an example a network of its own (isolated), that of the machine (host), or the better one "
        "(auto).",
        *(_F, _E, _C, _M),
        flags=("--network",),
        default=NetworkMode.AUTO,
    ),
    _setting(
        "reach",
        kinds.ENDPOINTS,
        "Names the services of the machine that an example with a network of its own gets to.",
        *(_C, _M),
        default=(),
        default_text="PostgreSQL, where it is given it",
    ),
    _setting(
        "exclusive",
        kinds.FLAG,
        "Runs the example with no other beside it.",
        _M,
        default=False,
    ),
    _setting(
        "locks",
        kinds.LOCKS,
        "Keeps the example apart from others that name the same lock.",
        _M,
        default=(),
        default_text="none",
    ),
    _setting(
        "retries",
        kinds.count(least=0),
        "Runs an example that failed again, alone and at the end, up to this often.",
        *(_F, _E, _C, _M),
        flags=("--retries",),
        default=0,
    ),
    _setting(
        "postgres",
        kinds.WANTS_POSTGRES,
        "Says whether the example wants PostgreSQL, whatever its source looks like.",
        _M,
        default_text="as its databases and its source say",
    ),
    _setting(
        "databases",
        kinds.WANTED_DATABASES,
        "Names or defines the databases that are made for the example.",
        _M,
        default_text="all that the configuration defines",
    ),
)

SETTINGS = RUN_SETTINGS + EXAMPLE_SETTINGS


def within(scope: Scope, settings: Iterable[Setting] = SETTINGS) -> dict[str, Setting]:
    """Give the settings that may be given in `scope`, by name; names are unique within a scope."""
    return {setting.name: setting for setting in settings if scope in setting.scopes}
