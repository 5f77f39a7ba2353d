import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_runner import hints
from e2e_runner.errors import ConfigError
from e2e_runner.hints import (
    Diagnosis,
    HintFacts,
    diagnose,
    flaky_advice,
    leak_advice,
    load_rules,
    network_advice,
    read_ending,
    timeout_advice,
)
from e2e_runner.model import (
    Leak,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    NetworkMode,
    Status,
)

OUTPUTS = Path(__file__).parent / "data" / "outputs"
FAILING = sorted(file for file in OUTPUTS.glob("*/*.txt") if file.parent.name != "passing")
PASSING = sorted(OUTPUTS.glob("passing/*.txt"))
RULES = load_rules()


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def _diagnose(
    output: str,
    *,
    status: Status = Status.FAILED,
    exit_code: int | None = 1,
    signal: str | None = None,
    network: NetworkMode | None = None,
) -> Diagnosis:
    facts = HintFacts(
        output=output,
        status=status,
        exit_code=exit_code,
        signal=signal,
        path="examples/example.py",
        python=".venv/bin/python",
        network=network,
    )
    return diagnose(RULES, facts)


def _saved(name: str) -> str:
    return (OUTPUTS / f"{name}.txt").read_text(encoding="utf-8")


# --- real outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FAILING, ids=_name)
def test_a_real_output_has_the_cause_that_its_folder_says(file: Path) -> None:
    cause = file.parent.name
    found = _diagnose(file.read_text(encoding="utf-8"), exit_code=2 if cause == "usage" else 1)
    assert found.cause == cause
    assert found.hints
    assert "?" not in found.hints[0]


@pytest.mark.parametrize("file", PASSING, ids=_name)
@pytest.mark.parametrize("exit_code", [0, 1, 2])
def test_a_passing_output_matches_no_rule(file: Path, exit_code: int) -> None:
    found = _diagnose(file.read_text(encoding="utf-8"), exit_code=exit_code)
    assert found == Diagnosis(cause=None)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_each_rule_is_no_rule_for_a_passing_script(number: int) -> None:
    rule = RULES[number]
    if rule.signals or rule.exceptions:
        return  # a script that passes ends by neither
    for file in PASSING:
        near = read_ending(file.read_text(encoding="utf-8"))
        for pattern in rule.patterns:
            assert pattern.search(near.last_lines) is None


def test_every_cause_has_a_real_output() -> None:
    seen_in_output = {rule.cause for rule in RULES if rule.patterns or rule.exceptions}
    assert seen_in_output == {file.parent.name for file in FAILING}


def test_every_rule_holds_for_a_real_output() -> None:
    held = set()
    for file in FAILING:
        output = file.read_text(encoding="utf-8")
        ending = read_ending(output)
        exit_code = 2 if file.parent.name == "usage" else 1
        facts = HintFacts(output=output, status=Status.FAILED, exit_code=exit_code)
        for number, rule in enumerate(RULES):
            for text in (ending.raised, ending.traceback, ending.last_lines):
                if (
                    rule.cause == file.parent.name
                    and hints._match(rule, facts, ending, text) is not None
                ):
                    held.add(number)
    not_held = [rule for number, rule in enumerate(RULES) if number not in held]
    assert [rule for rule in not_held if not rule.signals] == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "missing-module/python",
            "The module tenacity is not installed for .venv/bin/python: install what provides it there, or choose another interpreter with --python.",
        ),
        (
            "port-in-use/uvicorn",
            "Port 8000 was taken when the script wanted it: e2e-run looks before the start at those that the metadata declares (ports = [8000]), so one that is declared was taken later, perhaps by the script itself.",
        ),
        (
            "port-in-use/kit",
            "Port 8000 was taken before the script could serve there: the message says by whom.",
        ),
        *(
            (
                f"missing-module/kit-{what}",
                f"The server of the script, whose log the message shows, lacks the module {module}.",
            )
            for what, module in (
                ("server", "tenacity"),
                ("application", "shop"),
                ("program", "hypercorn"),
            )
        ),
        *(
            (
                f"server-not-ready/{name}",
                "A server that the script needs was not there: the message says how far it came, and shows its log.",
            )
            for name in ("never", "ended", "by-itself")
        ),
        (
            "database/kit-off",
            "The script could not have the databases that it wants: the message says why.",
        ),
        *(
            (
                f"not-in-time/{name}",
                "What the script waited for did not come true in time: the message says what the last try saw.",
            )
            for name in ("false", "exception")
        ),
        (
            "database/asyncpg-refused",
            "No PostgreSQL answers at port 5432. One that e2e-run gives is at DATABASE_URL and PGHOST, PGPORT (`postgres.env` sets the names that the application reads); a script that is given none says postgres = true, or names its own.",
        ),
        (
            "database/redis-refused",
            "No database server answers at port 6379: start it, or correct the address that the script connects to.",
        ),
        (
            "database/exists-sqlalchemy",
            "The database shop exists already, perhaps from an earlier run: choose a name that is new each time, or use the database that DATABASE_URL and PGDATABASE name; `e2e-run sweep-dbs` drops what was left behind.",
        ),
        (
            "database/template-in-use-asyncpg",
            "Others are connected to shop, from which the new database is to be copied: close every connection to it first, pools too, and connect to postgres for CREATE DATABASE.",
        ),
        (
            "database/too-many-role-psycopg",
            "The server allows no more connections for role limited: close those that are left open, make the script's pools smaller, or raise its CONNECTION LIMIT.",
        ),
        (
            "database/undefined-table-sqlalchemy-asyncpg",
            'The database has no table orders: load the schema by template = "schema.sql" in [tool.e2e-run.databases], run the migrations first, or let the script create it.',
        ),
        (
            "unique-violation/sqlalchemy-psycopg",
            "A row whose id is 1 exists already, from an earlier run or in what the database is filled with: let the script make that value anew each time (e2e_runner.kit.unique_name does), or give it databases of its own ([tool.e2e-run.databases]).",
        ),
        (
            "pgbouncer-prepared-statement/sqlalchemy-asyncpg",
            "A transaction pooler (PgBouncer) mixed up prepared statements: connect with statement_cache_size=0 (in SQLAlchemy by connect_args), or let PgBouncer 1.21 or newer keep them apart (max_prepared_statements = 200).",
        ),
        (
            "database/pgbouncer-startup-asyncpg",
            "PgBouncer does not take the startup parameter jit: set it by a SET statement after connecting (no server_settings in asyncpg, no options in libpq), or name it in PgBouncer's ignore_startup_parameters.",
        ),
        (
            "missing-variable/several",
            'The environment variable NOT_THERE is not set: give it by --env NOT_THERE=VALUE, or in the metadata as env = { NOT_THERE = "..." }.',
        ),
        *(
            (
                f"disk-full/{client}",
                "The database server's disk is full: make room there; the data of a server that e2e-run starts lies in memory (/dev/shm) or in the temporary folder, so for more of it name a server of your own (--postgres URL).",
            )
            for client in ("psycopg", "psycopg2", "asyncpg", "psql")
        ),
        *(
            (
                f"database/{name}-psycopg",
                "The server has no logical replication, as those that e2e-run starts have none: name one with wal_level = logical (--postgres URL).",
            )
            for name in ("logical-decoding", "logical-level")
        ),
        (
            "database/prepared-transactions-asyncpg",
            "The server has prepared transactions off, as those that e2e-run starts have: name one with max_prepared_transactions above 0 (--postgres URL).",
        ),
        (
            "missing-variable/keyerror",
            'The environment variable STRIPE_API_KEY is not set: give it by --env STRIPE_API_KEY=VALUE, or in the metadata as env = { STRIPE_API_KEY = "..." }.',
        ),
    ],
)
def test_the_advice_names_what_was_found(name: str, advice: str) -> None:
    assert _diagnose(_saved(name)).hints[0] == advice


@pytest.mark.parametrize(
    ("named", "port"),
    [
        ("http://localhost:8124/rates", "8124"),
        ("redis://127.0.0.1:6379/0 and redis://localhost:6379/1", "6379"),
        ("http://localhost:8000 and http://localhost:8001", "PORT"),
        ("http://bank:8124/", "PORT"),
    ],
)
def test_the_advice_names_the_port_that_the_traceback_does(named: str, port: str) -> None:
    output = (
        "Traceback (most recent call last):\n"
        '  File "/shop/rates.py", line 3, in <module>\n'
        f'    get("{named}")\n'
        "httpx.ConnectError: [Errno 111] Connection refused\n"
    )
    found = _diagnose(output, network=NetworkMode.ISOLATED)
    assert found.cause == "connection-refused"
    assert f'reach = ["localhost:{port}"]' in found.hints[0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("connection-refused/curl", 'reach = ["localhost:8000"]'),
        ("connection-refused/httpx", 'reach = ["localhost:8000"]'),
        ("dns/curl", 'reach = ["api.shop.invalid:PORT"]'),
        ("dns/httpx", 'reach = ["HOST:PORT"]'),
        ("unreachable/redis", 'reach = ["10.1.2.3:6379"]'),
        ("unreachable/psql", 'reach = ["10.1.2.3:5432"]'),
        ("unreachable/httpx", 'reach = ["HOST:PORT"]'),
        ("database/asyncpg-refused", 'reach = ["localhost:5432"]'),
        ("database/redis-refused", 'reach = ["localhost:6379"]'),
    ],
)
def test_in_a_network_of_its_own_the_advice_leads_out_of_it(name: str, wanted: str) -> None:
    isolated = _diagnose(_saved(name), network=NetworkMode.ISOLATED)
    assert isolated.cause == name.partition("/")[0]
    assert wanted in isolated.hints[0]
    for network in (NetworkMode.HOST, None):
        plain = _diagnose(_saved(name), network=network)
        assert (plain.cause, plain.details) == (isolated.cause, isolated.details)
        assert "reach" not in plain.hints[0]


def test_an_unreachable_host_has_one_cause() -> None:
    for file in (OUTPUTS / "unreachable").iterdir():
        assert len(_diagnose(file.read_text("utf-8")).hints) == 1, file


def test_the_advice_on_a_flaky_example_follows_from_what_was_different() -> None:
    assert "reach = " in flaky_advice(["b.py"], other_network=True)
    beside = flaky_advice(["e.py", "d.py", "c.py", "b.py"], other_network=False)
    assert beside.startswith("It failed beside b.py, c.py, d.py and 1 more: ")
    assert 'locks = ["NAME"]' in beside
    assert "beside b.py: " in flaky_advice(["b.py"], other_network=False)
    assert "Nothing was different" in flaky_advice([], other_network=False)


@pytest.mark.parametrize(
    ("note", "advice"),
    [
        (
            "user-namespace: unshare: refused (kernel.apparmor_restrict_unprivileged_userns=1)",
            "`sudo sysctl --write kernel.apparmor_restrict_unprivileged_userns=0`",
        ),
        (
            "unshare: No space left on device (user.max_net_namespaces=0)",
            "user.max_net_namespaces=",
        ),
        ("namespace: unshare: Operation not permitted", "docs/isolation.md"),
    ],
)
def test_the_advice_on_missing_isolation_says_what_allows_it(note: str, advice: str) -> None:
    said = network_advice([note])
    assert advice in said
    assert 'network = "auto"' in said


@pytest.mark.parametrize(
    ("leaks", "beginnings"),
    [
        ([LeakedDatabase(name="a")], ["Drop it in `finally`"]),
        ([LeakedDatabase(name="a"), LeakedDatabase(name="b")], ["Drop them in `finally`"]),
        ([LeakedPort(port=1)], ["Stop what the script starts in `finally`"]),
        (
            [LeakedProcess(pid=1, command="x"), LeakedPort(port=1), LeakedDatabase(name="a")],
            ["Drop it in `finally`", "Stop what the script starts in `finally`"],
        ),
    ],
)
def test_each_kind_that_was_left_behind_has_one_advice(
    leaks: list[Leak], beginnings: list[str]
) -> None:
    advice = leak_advice(leaks)
    assert [each.partition(",")[0] for each in advice] == beginnings


def test_the_advice_on_a_timeout_names_what_the_language_has() -> None:
    assert "`asyncio.timeout(...)`" in timeout_advice("examples/a.py", 90)
    assert "asyncio" not in timeout_advice("examples/a.sh", 90)
    assert "`timeout` (90s)" in timeout_advice("examples/a.sh", 90)


def test_the_port_that_was_in_use_is_a_detail() -> None:
    assert _diagnose(_saved("port-in-use/uvicorn")).details == {"port": "8000"}
    assert _diagnose(_saved("port-in-use/create-server")).details == {"port": "8000"}
    assert _diagnose(_saved("port-in-use/python")).details == {}


# --- what counts ---------------------------------------------------------------------------------


def test_the_last_exception_counts_and_not_one_that_was_handled_before() -> None:
    output = _saved("connection-refused/httpx") + _saved("assertion/message")
    assert _diagnose(output).cause == "assertion"


def test_an_exception_far_above_the_end_does_not_count() -> None:
    chatter = "".join(f"step {number}: OK\n" for number in range(40))
    assert _diagnose(_saved("connection-refused/httpx") + chatter).cause is None
    assert (
        _diagnose(_saved("connection-refused/httpx") + "stopping\n").cause == "connection-refused"
    )


def test_a_long_log_in_the_message_does_not_hide_the_exception() -> None:
    log = "".join(f"  | request {number}\n" for number in range(40))
    told = _saved("server-not-ready/never")
    assert _diagnose(told + log).cause == "server-not-ready"
    assert _diagnose(told + log + "stopping\n").cause == "server-not-ready"
    chatter = "".join(f"step {number}: OK\n" for number in range(40))
    assert _diagnose(told + log + chatter).cause is None


def test_a_root_of_trouble_goes_before_what_follows_from_it() -> None:
    found = _diagnose(_saved("missing-module/python") + _saved("connection-refused/httpx"))
    assert found.cause == "missing-module"


def test_an_exception_behind_the_last_one_counts_where_that_says_nothing() -> None:
    output = (
        _saved("connection-refused/urllib")
        + "\nThe above exception was the direct cause of the following exception:\n\n"
        + "Traceback (most recent call last):\n"
        + '  File "example.py", line 9, in <module>\n'
        + "shop.SetupError: no catalogue\n"
    )
    found = _diagnose(output)
    assert found.cause == "connection-refused"
    ending = read_ending(output)
    assert (ending.exception, ending.message) == ("shop.SetupError", "no catalogue")
    assert ending.traceback.count("Traceback (most recent call last):") == 3


def test_rules_of_other_causes_add_their_advice() -> None:
    output = _saved("disk-full/dd") + _saved("missing-module/python")
    found = _diagnose(output)
    assert found.cause == "disk-full"
    assert [hint.split(":")[0] for hint in found.hints] == [
        "The disk or the quota is full",
        "The module tenacity is not installed for .venv/bin/python",
    ]


@pytest.mark.parametrize(
    ("signal", "status", "cause"),
    [
        ("SIGKILL", Status.FAILED, "signal"),
        ("SIGKILL", Status.TIMEOUT, None),
        ("SIGSEGV", Status.FAILED, "segfault"),
        ("SIGBUS", Status.FAILED, "segfault"),
        ("SIGTERM", Status.FAILED, None),
    ],
)
def test_signals_are_told_by_their_name(signal: str, status: Status, cause: str | None) -> None:
    assert _diagnose("working\n", status=status, exit_code=None, signal=signal).cause == cause


@pytest.mark.parametrize("name", ["memory-error", "mmap", "bash", "kernel"])
def test_a_kill_is_for_want_of_memory_only_where_the_output_says_so(name: str) -> None:
    found = _diagnose(_saved(f"out-of-memory/{name}"), exit_code=None, signal="SIGKILL")
    assert found.cause == "out-of-memory"
    killed = _diagnose("bash: line 1: 4242 Killed  python a.py\n", exit_code=137)
    assert killed.cause is None


def test_a_kill_from_outside_names_the_kernel_as_a_mere_possibility() -> None:
    (hint,) = _diagnose("", exit_code=None, signal="SIGKILL").hints
    assert "perhaps the kernel's out-of-memory killer" in hint


def test_a_missing_display_says_both_ways_out() -> None:
    (hint,) = _diagnose(_saved("display/qt"), exit_code=None, signal="SIGABRT").hints
    assert "xvfb-run" in hint
    assert 'skip = "needs a display"' in hint


def test_usage_needs_exit_code_2() -> None:
    assert _diagnose(_saved("usage/click"), exit_code=2).cause == "usage"
    assert _diagnose(_saved("usage/click"), exit_code=1).cause is None


def test_colours_and_carriage_returns_are_no_obstacle() -> None:
    output = "50%\r100%\r\x1b[1;31mModuleNotFoundError: No module named 'yaml'\x1b[0m\r\n"
    assert _diagnose(output).cause == "missing-module"


def test_an_exception_group_tells_the_last_of_its_exceptions() -> None:
    ending = read_ending(_saved("connection-refused/taskgroup"))
    assert ending.exception == "ConnectionRefusedError"
    assert ending.message == "[Errno 111] Connect call failed ('127.0.0.1', 8001)"


def test_values_in_advice_are_short_and_on_one_line() -> None:
    output = f"ModuleNotFoundError: No module named '{'a' * 500}\x07'\n"
    (hint,) = _diagnose(output).hints
    assert "a" * 80 not in hint
    assert "\x07" not in hint


# --- properties ----------------------------------------------------------------------------------

FRAGMENTS = sorted(
    {
        piece
        for file in (*FAILING, *PASSING)
        for line in file.read_text(encoding="utf-8").splitlines()
        for piece in (line, line.split(": ")[0] + ": ", *line.split()[:3])
        if piece
    }
)


@given(st.text(), st.sampled_from(list(Status)), st.integers(0, 255))
def test_any_text_can_be_diagnosed(output: str, status: Status, exit_code: int) -> None:
    _diagnose(output, status=status, exit_code=exit_code)


@given(st.lists(st.sampled_from([*FRAGMENTS, "\n", "\n\n", " ", '"', "'"]), max_size=60))
def test_the_end_is_taken_apart_within_bounds(pieces: list[str]) -> None:
    ending = read_ending("".join(pieces))
    assert len([line for line in ending.last_lines.split("\n") if line]) <= 30
    assert ending.raised in ending.traceback


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=3), st.sampled_from(["", " "]))
def test_no_pattern_takes_long_on_long_lines(pieces: list[str], separator: str) -> None:
    unit = separator.join(pieces) + separator
    line = (unit * (4000 // len(unit) + 1))[:4000]
    output = "\n".join([line] * 40)
    begin = time.process_time()
    _diagnose(output)
    assert time.process_time() - begin < 1


def test_the_middle_of_a_flood_costs_nothing() -> None:
    output = "x" * 50_000_000 + "\n" + _saved("missing-module/python")
    begin = time.process_time()
    assert _diagnose(output).cause == "missing-module"
    assert time.process_time() - begin < 0.5


# --- the rule file -------------------------------------------------------------------------------


def test_the_rules_are_valid_and_say_advice_in_sentences() -> None:
    for rule in RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.cause)
        assert rule.advice[0].isupper() or rule.advice[0] == "{"
        assert rule.advice.endswith(".")


def test_every_field_is_explained_at_the_top_of_the_file() -> None:
    text = hints.RULES_FILE.read_text(encoding="utf-8")
    comments = text[: text.index("[[rule]]\ncause")]
    assert [name for name in hints._FIELDS if f"\n#   {name} " not in comments] == []
    used = {name for rule in tomllib.loads(text)["rule"] for name in rule}
    assert used <= hints._FIELDS.keys()


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        "[[rule]]\ncause = 'no-stock'\nadvice = 'Order {item}, then run {path} again.'\n"
        "patterns = ['^sold out: (?P<item>.*)$']\nstatuses = ['failed']\nexit-codes = [3]\n"
    )
    facts = HintFacts(output="sold out: tea\n", status=Status.FAILED, exit_code=3, path="buy.py")
    assert diagnose(load_rules(file), facts) == Diagnosis(
        cause="no-stock", hints=("Order tea, then run buy.py again.",), details={"item": "tea"}
    )


def test_patterns_share_pieces(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        "[pieces]\nshop = '^(?:shop|stall): '\n"
        "[[rule]]\ncause = 'no-stock'\nadvice = 'Order {item}.'\n"
        "patterns = ['(?&shop)sold out: (?P<item>.*)']\n"
    )
    facts = HintFacts(output="stall: sold out: tea\n", status=Status.FAILED)
    assert diagnose(load_rules(file), facts).hints == ("Order tea.",)


GOOD = "cause = 'x'\nadvice = 'Do.'\npatterns = ['y']\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[[rule]]\n{GOOD}patern = 1", "rule 1 (x): patern: unknown field; accepted: cause, "),
        (f"[[rule]]\n{GOOD}[[rule]]\ncause = 'z'", "rule 2 (z): advice: is missing"),
        ("[[rule]]\nadvice = 'Do.'", "rule 1: cause: is missing"),
        ("[[rule]]\ncause = 1", "rule 1: cause: must be a text"),
        (f"[[rule]]\n{GOOD}decisive = 1", "rule 1 (x): decisive: must be true or false"),
        (f"[[rule]]\n{GOOD}exit-codes = ['2']", "exit-codes: '2' is not a whole number"),
        (f"[[rule]]\n{GOOD}exit-codes = [true]", "exit-codes: True is not a whole number"),
        (f"[[rule]]\n{GOOD}statuses = ['late']", "statuses: 'late'; accepted: passed, served, "),
        ("[[rule]]\ncause = 'x'\nadvice = 'Do.'\npatterns = ['(']", "patterns: '(' is not a "),
        ("[[rule]]\ncause = 'x'\nadvice = 'Do.'", "rule 1 (x): has no condition; one of "),
        (
            "[[rule]]\ncause = 'x'\nadvice = 'Do {this}.'\npatterns = ['(?P<this>a)', 'b']",
            "rule 1 (x): advice: {this} is neither a fact (exception, message, path, port, python) nor",
        ),
        ("[[rule]]\ncause = 'x'\nadvice = 'Do { this.'\npatterns = ['a']", "rule 1 (x): advice: "),
        ("[[rules]]\n", "rules: only [[rule]] tables and [pieces] are accepted"),
        ("rule = 1", "rule: only [[rule]] tables and [pieces] are accepted"),
        ("rule = [1]", "rule 1: must be a [[rule]] table"),
        ("pieces = 1", "pieces: must be a table of texts"),
        ("[pieces]\na = 1", "pieces: must be a table of texts"),
        (
            "[[rule]]\ncause = 'x'\nadvice = 'Do.'\npatterns = ['(?&b)']\n[pieces]\na = 'z'",
            "rule 1 (x): patterns: '(?&b)': no piece b; known: a",
        ),
        ("[[rule", "not valid TOML: "),
    ],
)
def test_a_rule_that_cannot_be_used_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_rules(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_a_rule_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        load_rules(file)
    assert str(caught.value) == f"{file}: cannot be read: No such file or directory"


def test_a_crash_of_this_interpreter_is_recognised() -> None:
    code = "import faulthandler, os, signal; faulthandler.enable(); os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -11
    assert _diagnose(done.stderr, exit_code=None, signal="SIGSEGV").cause == "segfault"
    assert _diagnose(done.stderr).cause == "segfault"
