"""The vocabulary: every value that the parts of e2e-run hand to each other. No I/O.

Paths called ``path`` are strings relative to the project's root with ``/`` separators; they name an
example in every report. Paths called ``file`` are absolute. Seconds are floats, sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Status(StrEnum):
    """What became of an example."""

    PASSED = "passed"
    SERVED = "served"
    FLAKY = "flaky"
    LEAKED = "leaked"
    FAILED = "failed"
    TIMEOUT = "timeout"
    BLOCKED = "blocked"
    SKIPPED = "skipped"
    NOT_RUN = "not-run"


class Source(StrEnum):
    """Where a setting's value came from, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    METADATA = "metadata"
    OVERRIDE = "override"
    CONFIG = "config"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one setting came from: its source, and the place in it (``e2e-run.toml:12``)."""

    source: Source
    where: str = ""


# --- readiness -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe:
    """Ready when a GET of `url` answers with a status below 400."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe:
    """Ready when a TCP connection to `host`:`port` is accepted."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProbe:
    """Ready when a line of the output matches the regular expression `pattern`."""

    pattern: str


Probe = HttpProbe | TcpProbe | LogProbe


# --- the network ---------------------------------------------------------------------------------


class NetworkMode(StrEnum):
    """Which network an example gets."""

    AUTO = "auto"  # one of its own where that can be had and does the example no harm
    ISOLATED = "isolated"
    HOST = "host"


class NetworkTier(StrEnum):
    """How examples get a network of their own, best first."""

    NAMESPACE = "namespace"
    USER_NAMESPACE = "user-namespace"  # a network namespace in a user namespace, for ordinary users
    HOST = "host"  # they get none


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A TCP service, as a script names it."""

    host: str  # a name or an IP address
    port: int

    def __str__(self) -> str:
        """Give HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of `count` parts of a suite; `index` counts from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        """Give INDEX/COUNT."""
        return f"{self.index}/{self.count}"


class CutBy(StrEnum):
    """What told how long the examples take, when a suite was cut into shards."""

    TIMINGS = "timings"  # a file
    HISTORY = "history"
    COUNT = "count"  # nothing: the parts have equal counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCut:
    """A shard, and what it was cut from: shards fit together when `count` and `basis` are the same."""

    index: int
    count: int
    basis: str  # digest of the examples and their durations
    by: CutBy

    def __str__(self) -> str:
        """Give INDEX/COUNT."""
        return f"{self.index}/{self.count}"


# --- PostgreSQL ----------------------------------------------------------------------------------


class PostgresMode(StrEnum):
    """Which PostgreSQL server the examples get."""

    AUTO = "auto"  # the one whose URL e2e-run was given, else an embedded one
    EMBEDDED = "embedded"
    ENV = "env"  # the one that DATABASE_URL and PG* of the caller name
    OFF = "off"
    URL = "url"  # the one whose URL was given


class PostgresScope(StrEnum):
    """How far an embedded server reaches."""

    EXAMPLE = "example"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a PostgreSQL server is, and who asks."""

    host: str  # a name, an IP address, or the folder of a Unix socket
    port: int
    user: str
    password: str | None = field(repr=False)
    database: str
    options: Mapping[str, str] = field(default_factory=dict)  # as in {"sslmode": "require"}

    def __str__(self) -> str:
        """Name the server without its password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDefinition:
    """A named database that each attempt gets: ``[tool.e2e-run.databases]``."""

    name: str  # the key in the table
    env: tuple[str, ...] = ()  # variables that hold the database's name
    suffix: str | None = None  # of the database's name; None: none for the first, else _NAME
    template: tuple[Path, ...] = ()  # absolute files of SQL that fill it, in order
    command: tuple[str, ...] = ()  # a command that fills it, run in the root, after the files


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """What was said of PostgreSQL for the whole run."""

    mode: PostgresMode = PostgresMode.AUTO
    url: ServerAddress | None = None  # given to e2e-run, not to the application
    admin_url: ServerAddress | None = None  # past a pooler, with the right to create and drop
    scope: PostgresScope = PostgresScope.EXAMPLE
    env: Mapping[str, str] = field(default_factory=dict)  # NAME -> "{host}:{port}"
    patterns: tuple[str, ...] = ()  # of names that `sweep-dbs` may drop
    protect: tuple[str, ...] = ()  # of names that it never drops
    keep_databases: bool = False  # those of examples that failed
    databases: tuple[DatabaseDefinition, ...] = ()  # of the configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """A database as a survey of its server saw it."""

    oid: int
    name: str
    owner: str
    is_template: bool = False
    allows_connections: bool = True
    half_dropped: bool = False  # a DROP DATABASE was broken off: it can only be dropped
    kept: bool = False  # left there on purpose, by --keep-databases
    sessions: int = 0
    slots: tuple[str, ...] = ()  # names of replication slots
    subscriptions: tuple[str, ...] = ()
    prepared: int = 0  # prepared transactions
    size: int | None = None  # bytes; None: not for this user to know
    age: float | None = None  # seconds since it was created; None: not to be known


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """A server's databases, and what tells whether they are in use, seen at one moment."""

    databases: tuple[DatabaseFacts, ...]
    leases: frozenset[int]  # keys of the advisory locks that are held, see `dbnames.lease_key`
    roles: tuple[str, ...]  # those whose names e2e-run makes
    now: float  # the server's clock, in seconds since the epoch
    busy: frozenset[str] = frozenset()  # tokens of runs whose roles or databases have sessions


# --- settings ------------------------------------------------------------------------------------


class OnPortConflict(StrEnum):
    """What to do with an example whose declared port is taken."""

    FAIL = "fail"
    WAIT = "wait"
    SKIP = "skip"


class Capture(StrEnum):
    """How output is kept: one log in the order written, or a log for each stream."""

    MERGED = "merged"
    SEPARATE = "separate"


class Containment(StrEnum):
    """How the processes of an example are held together, best first."""

    CGROUP = "cgroup"
    PID_NAMESPACE = "pid-namespace"
    SCAN = "scan"
    PROCESS_GROUP = "process-group"


class Color(StrEnum):
    """Whether the console uses colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class ReportFormat(StrEnum):
    """The formats that ``--report FORMAT=PATH`` writes."""

    JSON = "json"
    JSONL = "jsonl"
    JUNIT = "junit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTarget:
    """One ``--report FORMAT=PATH``."""

    format: ReportFormat
    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of the whole run, each resolved to one value."""

    root: Path  # the config's folder, else the working directory: report paths are relative to it
    config_file: Path | None
    state_dir: Path  # .e2e-run beside the config
    paths: tuple[Path, ...]  # absolute; files and folders to search
    python: str  # the interpreter that runs *.py
    keyword: str | None
    only: tuple[str, ...]
    skip: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    interpreters: Mapping[str, str]  # suffix -> command, as in {".sh": "bash"}
    fail_on_output: tuple[str, ...]
    strict: bool
    fail_fast: bool
    max_fail: int | None
    on_port_conflict: OnPortConflict
    free_ports: bool
    containment: Containment | None  # None: the best that the probes find
    max_output: int
    capture: Capture
    no_capture: bool
    keep_runs: int
    reports: tuple[ReportTarget, ...]
    verbose: int
    quiet: bool
    color: Color
    postgres: PostgresSettings = field(default_factory=PostgresSettings)
    jobs: int | None = 1  # examples at a time; None: as many as is safe
    repeat: int = 1  # how often each example is run; all of these must pass
    last_failed: bool = False  # only those whose last verdict was not ok
    shard: Shard | None = None
    timings: Path | None = None  # file of durations that shards are balanced by
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """The settings of one example, each resolved to one value."""

    timeout: float
    grace: float
    ports: tuple[int, ...]  # declared: must be free
    tags: tuple[str, ...]  # sorted; declared and inferred
    env: Mapping[str, str]
    args: tuple[str, ...]
    stdin: str | None  # text for standard input; None: /dev/null
    cwd: Path  # absolute
    serve: Probe | None
    needs: tuple[Path, ...]  # absolute files of the companions
    skip: str | None  # the reason
    expect_exit: int
    interpreter: tuple[str, ...]  # the command that the script is handed to
    postgres: bool | None = None  # whether it wants PostgreSQL; None: as its source says
    databases: tuple[DatabaseDefinition, ...] = ()  # those that it gets
    network: NetworkMode = NetworkMode.AUTO
    reach: tuple[
        Endpoint, ...
    ] = ()  # services of the host that it gets to from a network of its own
    exclusive: bool = False  # runs with no other example beside it
    locks: tuple[str, ...] = ()  # no two that name the same run at the same time
    retries: int = 0  # how often it is run again, alone, after it failed
    origins: Mapping[str, Origin] = field(default_factory=dict)


# --- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with metadata: the full message, naming file, line, key and what is accepted."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One script to run, with everything that decides how."""

    path: str
    file: Path
    argv: tuple[str, ...]  # interpreter, script (or -m module) and arguments
    settings: ExampleSettings
    # Literals in the source and in the modules that it imports: taken ones only warn. Those that only
    # clients of services go to are among the first, too, where the example may start such a service.
    found_ports: tuple[int, ...] = ()
    service_ports: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()  # not empty: fails with cause `bad-metadata`, unstarted
    companions: tuple["Example", ...] = ()  # what `needs` names, in order
    found_postgres: str = ""  # what in the source wants PostgreSQL, as in "imports asyncpg"

    @property
    def ports(self) -> tuple[int, ...]:
        """Declared ports first, then those found in the source."""
        declared = self.settings.ports
        return declared + tuple(port for port in self.found_ports if port not in declared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deselected:
    """An example that is not run on purpose: by tag, keyword or its own `skip`."""

    example: Example
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotExample:
    """A file that looked like a script and is none, with the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one run does: `examples` in this order; the rest is reported."""

    examples: tuple[Example, ...]
    deselected: tuple[Deselected, ...] = ()
    not_examples: tuple[NotExample, ...] = ()
    warnings: tuple[str, ...] = ()
    cut: ShardCut | None = None  # what part of the suite `examples` are
    shard: str = ""  # the same in words; empty: the whole
    last_failed: str = ""  # in words, how many were outstanding; empty: that was not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier runs tell of an example."""

    duration: float | None = None  # seconds that it takes, as a rule
    failed: bool = False  # its last verdict was not ok
    ports: tuple[int, ...] = ()  # TCP ports that it was seen to listen on
    observed: bool = False  # it ran to its end before, so `ports` are all that it listens on
    max_rss: int | None = None  # bytes
    network: NetworkMode | None = None  # HOST: it was ok there after a verdict in doubt


# --- outside facts -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as last seen. `started` (seconds since the epoch) guards against pid reuse."""

    pid: int
    command: str
    started: float
    user: str = ""
    uid: int | None = None  # as which it acts
    ports: tuple[int, ...] = ()  # TCP ports that it listens on


@dataclass(frozen=True, slots=True, kw_only=True)
class PortOwner:
    """Who listens on a port. `process` is None when the system does not show it to this user."""

    port: int
    addresses: tuple[str, ...]  # bound addresses, as in ("0.0.0.0", "::")
    process: ProcessInfo | None
    uid: int | None = None  # owner of the socket, known even when the process is not visible
    earlier_run: str | None = None  # id of the earlier run of this project whose tag it carries
    note: str = ""  # e.g. "published by a container"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. Exactly one of `code` and `signal` is set."""

    code: int | None
    signal: int | None
    cpu: float | None = None  # user + system seconds of the script and the children it waited for
    max_rss: int | None = None  # bytes, largest single process of those


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedProcess:
    """A process that outlived its script. `kept` says why it may be still there, else it was killed."""

    pid: int | None  # None: it ended and started anew at each look, as a fork bomb does
    command: str
    ports: tuple[int, ...] = ()
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedPort:
    """A port still listened on after the script, and by whom."""

    port: int
    owner: str = ""  # in words


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedDatabase:
    """A database that outlived its script.

    `doubt` says why it may be somebody else's; it is empty when that is out of the question.
    `kept` says why it was not dropped; it is empty when it was.
    """

    name: str
    owner: str = ""
    doubt: str = ""
    kept: str = ""


Leak = LeakedProcess | LeakedPort | LeakedDatabase


class StepOutcome(StrEnum):
    """What became of a step."""

    OK = "ok"
    FAILED = "failed"
    UNFINISHED = "unfinished"  # the script ended, or was ended, in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of its story, as the script told it."""

    title: str
    started: float  # seconds since the script was started
    duration: float
    outcome: StepOutcome
    depth: int = 0  # how many steps are around it
    section: str = ""
    error: str = ""  # why it failed, in one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that the script told."""

    name: str
    value: int | float | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The verdict on one example, with the evidence."""

    path: str
    status: Status
    cause: str | None = None  # refines failed, timeout and blocked
    reason: str = ""  # "exit code 1"
    exit_code: int | None = None
    signal: str | None = None  # "SIGSEGV"
    duration: float = 0.0
    cpu: float | None = None
    max_rss: int | None = None
    tags: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    leaks: tuple[Leak, ...] = ()
    attempts: int = 0  # how many times it was started
    log: str | None = None  # relative to the root
    output_tail: str = ""  # decoded, control characters untouched; empty for what passed
    output_cut: bool = False  # whether more was written than `output_tail` holds
    output_dropped: int = 0  # bytes dropped from the middle of the log
    hints: tuple[str, ...] = ()  # one sentence of advice each
    notes: tuple[str, ...] = ()  # facts worth a line, such as "needed SIGKILL"
    command: str = ""  # to run it by hand, from the root
    steps: tuple[Step, ...] = ()  # in the order in which they began
    happened_in: int | None = None  # the one of `steps` in which it failed or was stopped
    metrics: tuple[Metric, ...] = ()
    summary: str = ""  # what the script says of itself
    network: NetworkMode | None = None  # ISOLATED or HOST: where it ran; None: it was not started
    listened: tuple[int, ...] = ()  # TCP ports that it was seen to listen on
    isolation_suspect: str = ""  # why the verdict may be the doing of the isolation, in words
    repeats: int = 1  # how often it was to run, with --repeat
    repeats_passed: int = 0  # how many of those were ok; counted with --repeat alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What identifies and describes a run as a whole."""

    id: str
    started: float  # seconds since the epoch
    root: Path
    jobs: int
    python: str  # path of the project's interpreter
    version: str  # of e2e-run
    processes: Containment | None  # None: nothing was selected, so nothing was set up
    containment_notes: tuple[str, ...] = ()  # why a better tier is not in force
    network: NetworkTier = NetworkTier.HOST  # of examples that get a network of their own
    network_notes: tuple[str, ...] = ()  # why a better tier is not in force
    postgres: str = ""  # in words, what examples that want PostgreSQL get; empty: none wants it
    withheld: tuple[str, ...] = ()  # variables of the caller that no example is handed


# --- history -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as the history keeps it, or as a json report tells of it."""

    id: str
    started: float  # seconds since the epoch
    duration: float | None = None  # seconds; None: it was killed, or goes on
    exit_code: int | None = None
    interrupted: bool = False
    jobs: int = 1
    network: str = ""  # the tier
    processes: str = ""
    python: str = ""
    version: str = ""
    shard: str = ""  # INDEX/COUNT; empty: the whole suite


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """A verdict as the history keeps it, or as a json report tells of it."""

    run: str  # id of the run
    started: float  # of the run, in seconds since the epoch
    path: str
    status: Status
    cause: str | None = None
    reason: str = ""
    duration: float = 0.0
    cpu: float | None = None
    max_rss: int | None = None
    attempts: int = 1
    repeats: int = 1
    repeats_passed: int = 0
    network: NetworkMode | None = None
    listened: tuple[int, ...] = ()
