"""Where a PostgreSQL server is: URLs, the variables of libpq, and what a script is told. Pure.

Passwords: no message of this module holds one, nor any part of a URL that may be one.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from urllib.parse import quote, unquote

from e2e_runner.model import DatabaseDefinition, PostgresSettings, ServerAddress

DEFAULT_PORT = 5432
DATABASE_URL = "DATABASE_URL"
PLACEHOLDERS = ("host", "port", "user", "password", "database", "url")  # of `postgres.env`

# Parameters of a connection, and the variables from which libpq (to version 18) takes them.
_PARTS = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
}
_OPTIONS = {
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "gssdelegation": "PGGSSDELEGATION",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
# What of the caller's environment says where the application's database is and who may enter. What
# only says how a session behaves (PGTZ, PGDATESTYLE, PGCLIENTENCODING, PGAPPNAME...) is not here.
APPLICATION_VARIABLES = (
    DATABASE_URL,
    *_PARTS.values(),
    *("PGSERVICE", "PGSERVICEFILE", "PGREQUIRESSL"),
    *_OPTIONS.values(),
)
# Those of e2e-run's own that hold an address, with a password that is none of a script's business;
# the last is of a run around this one.
_OWN_VARIABLES = ("E2E_RUN_POSTGRES", "E2E_RUN_POSTGRES_ADMIN_URL", "E2E_RUN_DATABASES")

_SCHEME = re.compile(r"(?:postgres|postgresql)(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_LARGEST_PORT = 65535
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_ENCODE = "a %, /, :, ?, # or @ in a name or password is written %25, %2F, %3A, %3F, %23 or %40"
_FORMS = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_SOCKET_FOLDERS = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108 - where libpq looks


def is_postgres_url(text: str) -> bool:
    """Say whether a text begins as the URL of a PostgreSQL server.

    >>> is_postgres_url("postgresql+asyncpg://db/shop"), is_postgres_url("sqlite:///shop.db")
    (True, False)
    """
    return _SCHEME.match(text) is not None


def parse_url(text: str, *, user: str = "") -> ServerAddress:
    """Read a URL as libpq does; `user` stands in for one that the URL does not name.

    The database is by default named as the user. What is still missing is an empty string, for
    `complete` to fill in. Raises ValueError with one clause that holds nothing of
    the URL.

    >>> parse_url("postgres://maria@db.example/shop?sslmode=require")
    ServerAddress(host='db.example', port=5432, user='maria', database='shop', options={'sslmode': 'require'})
    """
    parts = _split(text)
    parts.setdefault("user", user)
    return _address(parts)


def complete(
    address: ServerAddress, *, user: str, exists: Callable[[str], bool] = lambda _: False
) -> ServerAddress:
    """Fill in what an address does not say: `user`, the database of that name, and the host.

    The host is then the folder of the first Unix socket that `exists`, else localhost.
    """
    host = address.host or next(
        (folder for folder in _SOCKET_FOLDERS if exists(f"{folder}/.s.PGSQL.{address.port}")),
        "localhost",
    )
    user = address.user or user
    return replace(address, host=host, user=user, database=address.database or user)


def to_url(
    address: ServerAddress,
    *,
    with_password: bool,
    database: str | None = None,
    scheme: str = "postgresql",
) -> str:
    """Write an address as a URL; `database` overrides that of the address.

    >>> to_url(parse_url("postgres://maria:s@[::1]/shop"), with_password=False)
    'postgresql://maria@[::1]:5432/shop'
    """
    options = dict(address.options)
    if address.host.startswith(("/", "@")):  # a Unix socket, or an abstract one
        where = ""
        options = {"host": address.host, "port": str(address.port), **options}
    else:
        host = quote(address.host, safe=":")
        where = f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
    who = quote(address.user, safe="")
    if with_password and address.password:
        who += ":" + quote(address.password, safe="")
    if who:
        who += "@"
    name = quote(address.database if database is None else database, safe="")
    query = "&".join(f"{quote(key, safe='')}={quote(options[key], safe='/:')}" for key in options)
    return f"{scheme}://{who}{where}/{name}{'?' if query else ''}{query}"


def from_environment(environ: Mapping[str, str]) -> tuple[ServerAddress, str] | None:
    """Read the application's own variables; gives the address and the variable that decided.

    That is ``DATABASE_URL`` where it names a PostgreSQL server, with what it leaves out taken from
    the ``PG*`` variables, else those alone. None where they name no server. What is missing is for
    `complete` to fill in. Raises ValueError with one clause that names the variable.
    """
    given = {
        name: environ[variable]
        for name, variable in (*_PARTS.items(), *_OPTIONS.items())
        if environ.get(variable)
    }
    text = environ.get(DATABASE_URL, "").strip()
    if is_postgres_url(text):
        try:
            parts = _split(text)
            if "host" in parts:
                for name in ("host", "hostaddr", "port"):
                    given.pop(name, None)
            return _address({**given, **parts}), DATABASE_URL
        except ValueError as error:
            raise ValueError(f"{DATABASE_URL}: {error}") from None
    if environ.get("PGSERVICE"):
        raise ValueError(
            "PGSERVICE is set, and service files are not read: set PGHOST, PGPORT, PGUSER and "
            "PGDATABASE instead"
        )
    deciding = [_PARTS[name] for name in _PARTS if name in given and name != "password"]
    if not deciding:
        return None
    try:
        return _address(given), deciding[0]
    except ValueError as error:
        raise ValueError(f"{deciding[0]} and other PG* variables: {error}") from None


# --- what a script is told -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """An environment without the application's variables, and those of them that had been set."""

    environ: Mapping[str, str]
    names: tuple[str, ...]


def without_application(
    environ: Mapping[str, str],
    settings: PostgresSettings,
    definitions: Iterable[DatabaseDefinition],
) -> Withheld:
    """Leave out what leads to the application's databases, and what leads to e2e-run's server.

    Those are `APPLICATION_VARIABLES`, the names that ``postgres.env`` and the ``env`` of the
    databases map (those of the settings, and `definitions` of single examples), and whatever holds
    the URL of a PostgreSQL server.
    """
    defined = (*settings.databases, *definitions)
    mapped = (*settings.env, *(name for each in defined for name in each.env))
    urls = (name for name, value in environ.items() if is_postgres_url(value))
    foreign = dict.fromkeys(
        name
        for name in (*APPLICATION_VARIABLES, *mapped, *sorted(urls))
        if name not in _OWN_VARIABLES
    )
    hidden = {*foreign, *_OWN_VARIABLES}
    return Withheld(
        environ={name: value for name, value in environ.items() if name not in hidden},
        names=tuple(name for name in foreign if environ.get(name)),
    )


def variables(
    address: ServerAddress,
    names: Mapping[str, str],
    definitions: Iterable[DatabaseDefinition],
    env_mapping: Mapping[str, str],
) -> dict[str, str]:
    """Give the variables that tell a script of its server.

    `names` maps the names of `definitions` to those of the databases made for them; `env_mapping` is
    ``postgres.env``. What a mapping names is stronger than what every script gets; a variable that
    needs the name of a database which this script does not have is left out.
    """
    result = {
        DATABASE_URL: to_url(address, with_password=True),
        "PGHOST": address.host,
        "PGPORT": str(address.port),
        "PGUSER": address.user,
        "PGDATABASE": address.database,
    }
    if address.password:
        result["PGPASSWORD"] = address.password
    result |= {_OPTIONS[name]: value for name, value in address.options.items() if name in _OPTIONS}
    for definition in definitions:
        result |= dict.fromkeys(definition.env, names[definition.name])
    values = {
        **names,
        "host": address.host,
        "port": str(address.port),
        "user": address.user,
        "password": address.password or "",
        "database": address.database,
        "url": result[DATABASE_URL],
    }
    for name, template in env_mapping.items():
        if values.keys() >= set(placeholders(template)):
            result[name] = fill(template, values)
    return result


def placeholders(template: str) -> tuple[str, ...]:
    """Give the names in braces of a value of ``postgres.env``.

    Raises ValueError with one clause for braces that do not pair and for what is no plain name.

    >>> placeholders("{host}:{port} {{literal}}")
    ('host', 'port')
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("its braces do not pair; a literal brace is doubled") from None
    for _, name, format_, conversion in parsed:
        if name is not None and (not name or format_ or conversion or re.search(r"[.\[]", name)):
            raise ValueError("a placeholder is {NAME}; a literal brace is doubled")
    return tuple(name for _, name, _, _ in parsed if name is not None)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into a template that `placeholders` accepts; each of its names must have one.

    >>> fill("{host}:{port}/{{x}}", {"host": "db", "port": "5433"})
    'db:5433/{x}'
    """
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in Formatter().parse(template)
    )


# --- reading -------------------------------------------------------------------------------------


def _split(text: str) -> dict[str, str]:
    """Take a URL apart into parameters of a connection; those that are empty are left out."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise ValueError(f"this is no URL of a PostgreSQL server, as in {_FORMS}")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError("a URL contains no spaces or control characters; they are percent-encoded")
    rest, _, query = text[scheme.end() :].partition("?")
    authority, _, database = rest.partition("/")
    if "@" in database or "/" in database:
        raise ValueError(f"the name of its database is not percent-encoded: {_ENCODE}")
    login, at, server = authority.rpartition("@")
    user, _, password = login.partition(":") if at else ("", "", "")
    host, port = _host_and_port(server)
    parts = {"host": host, "port": port, "user": user, "password": password, "dbname": database}
    decoded = {name: _decode(value) for name, value in parts.items()}
    for item in query.split("&") if query else ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError("what follows its ? is not NAME=VALUE, joined by &")
        decoded[_decode(name)] = _decode(value)
    return {name: value for name, value in decoded.items() if value}


def _host_and_port(server: str) -> tuple[str, str]:
    _refuse_several(server)
    if server.startswith("["):
        host, bracket, rest = server[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("the brackets around its IPv6 address do not pair")
        return host, rest[1:]
    if server.count(":") > 1:
        raise ValueError(
            f"its host has several colons: an IPv6 address is in brackets, and {_ENCODE}"
        )
    host, _, port = server.partition(":")
    return host, port


def _refuse_several(text: str) -> None:
    if "," in text:
        raise ValueError("several hosts are not supported: name one")


def _decode(text: str) -> str:
    if _PERCENT.search(text):
        raise ValueError(f"a % in it is not followed by two hexadecimal digits: {_ENCODE}")
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("its percent-encoding is not UTF-8") from None
    if "\0" in decoded:
        raise ValueError("it contains a NUL character")
    return decoded


def _address(parts: Mapping[str, str]) -> ServerAddress:
    for name in ("host", "hostaddr", "port"):
        _refuse_several(parts.get(name, ""))
    port = parts.get("port", str(DEFAULT_PORT))
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _LARGEST_PORT:
        raise ValueError(f"its port is no number from 1 to {_LARGEST_PORT}; {_ENCODE}")
    if "service" in parts:
        raise ValueError(
            "it names a service, and service files are not read: name host and database"
        )
    options = {name: value for name, value in parts.items() if name not in _PARTS}
    _translate_ssl(options)
    user = parts.get("user", "")
    return ServerAddress(
        # libpq connects to `hostaddr` and uses `host` to check the certificate alone.
        host=parts.get("hostaddr") or parts.get("host", ""),
        port=int(port),
        user=user,
        password=parts.get("password"),
        database=parts.get("dbname", user),
        options=options,
    )


def _translate_ssl(options: dict[str, str]) -> None:
    """Read the `ssl` of other drivers' URLs as the `sslmode` that it means."""
    meant = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
    ssl = options.get("ssl", "").lower()
    mode = meant.get(ssl, ssl)
    if mode in _SSL_MODES:
        del options["ssl"]
        options.setdefault("sslmode", mode)
