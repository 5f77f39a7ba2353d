"""Finds TCP ports that a script's source names as literals. Pure."""

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from e2e_runner.parsers import MAX_PORT

_LOCAL = r"(?:localhost|127(?:\.\d{1,3}){3}|0\.0\.0\.0|\[::1?\])"
_LOCAL_HOST = re.compile(rf"{_LOCAL}|::1?|\*?", re.IGNORECASE)
_ADDRESS = re.compile(rf"(?<![\w.-]){_LOCAL}:(\d{{1,5}})(?!\d)", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z0-9]+)[a-z0-9+.-]*\Z", re.IGNORECASE)
_LONGEST_SCHEME = 40  # characters, and as many of user and password after it
_OPTION = re.compile(r"(?<![\w-])--(?:[a-z]+-)*port(?:=|\s+)(\d{1,5})(?!\d)")
_AFTER_HOST = re.compile(r":(\d{2,5})(?![\d:])")
_PORT_NAME = re.compile(r"(?:^|[_-])ports?$|[a-z]Ports?$|^PORTS?$|_PORTS?$")
_OTHER_LANGUAGES = re.compile(
    r"(?:(?<![a-z])port['\"]?\s*[=:]\s*['\"]?|\.listen\(\s*)(\d{1,5})(?![\d.])", re.IGNORECASE
)
_COMMENT = re.compile(r"^[ \t]*(?:#|//).*$", re.MULTILINE)

# Services that a script uses and does not start: their ports are expected to be taken.
_SERVICES = frozenset(
    {"amqp", "cassandra", "database", "db", "elastic", "elasticsearch", "imap", "kafka", "ldap"}
    | {"memcached", "mongo", "mongodb", "mysql", "nats", "pg", "postgres", "postgresql", "proxy"}
    | {"rabbitmq", "redis", "rediss", "smtp", "socks5", "ssh", "zookeeper"}
)
# Classes and functions that go to such a service, by their last name, and the ports that only such a
# service listens on: a connection to any other may be one to what the script itself has started.
_CLIENTS = frozenset(
    {"AIOKafkaConsumer", "AIOKafkaProducer", "AsyncElasticsearch", "AsyncIOMotorClient"}
    | {"AsyncMongoClient", "AsyncOpenSearch", "BlockingConnection", "ConnectionParameters"}
    | {"Elasticsearch", "InfluxDBClient", "InfluxDBClient3", "KafkaConsumer", "KafkaProducer"}
    | {"MongoClient", "MotorClient", "OpenSearch", "Redis", "RedisCluster", "StrictRedis"}
)
_CONNECTING = frozenset(
    {"connect", "connect_ex", "connect_tcp", "create_connection", "create_pool"}
    | {"open_connection", "open_tcp_stream"}
)
_SERVICE_PORTS = frozenset(
    {21, 22, 25, 389, 465, 587, 636, 1433, 1521, 1883, 2181, 3306, 4222, 5432, 5672, 6379, 9042}
    | {9092, 9200, 11211, 26379, 27017}
)
_HOST_NAMES = frozenset({"address", "addr", "bind", "host", "hostname", "server", "url"})
_DEFAULT_GETTERS = frozenset(
    {"get", "getenv", "int", "env", "config", "Option", "Field", "Argument"}
)
_FIRST_FREE_PORT = 1024  # below, only root may listen
_DEEPEST = 8  # nesting of calls around a literal

_Hit = tuple[ast.AST, int]  # a port, and the node that names it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports that a Python source names, each in the order of appearance.

    `guarded` are those of `served` that are named nowhere but in the guarded lines, `gone_to` those
    that are named in calls of clients of a service and nowhere else.
    """

    served: tuple[int, ...] = ()
    guarded: tuple[int, ...] = ()
    gone_to: tuple[int, ...] = ()


# Cheap test that tells most files apart before their syntax trees are searched.
MAY_NAME_PORTS = re.compile(
    rb"(?i)(?<!im)port|localhost|127\.|0\.0\.0\.0|::|\.listen\(|\.bind\(|server\(|://"
)


def ports_in_text(text: str) -> tuple[int, ...]:
    """Find ports in a script of any language, in the order of appearance; comments do not count."""
    code = _COMMENT.sub("", text)
    found = [(match.start(), number) for match, number in _addresses(code)]
    for pattern in (_OPTION, _OTHER_LANGUAGES):
        found += [(match.start(), int(match.group(1))) for match in pattern.finditer(code)]
    return _valid(number for _, number in sorted(found))


def ports_in_nodes(nodes: Iterable[ast.AST], guarded: Sequence[range] = ()) -> Ports:
    """Find ports in the syntax nodes of a Python script; `guarded` are lines that an import skips.

    A node must come before those that it holds.
    """
    served: list[tuple[int, int, int]] = []
    gone_to: list[tuple[int, int, int]] = []
    foreign: set[int] = set()  # ids of values that belong to a server elsewhere
    of_clients: set[int] = set()  # ids of what is told to the client of a service
    of_connections: set[int] = set()
    for node in nodes:
        finder = _FINDERS.get(type(node))
        if finder is None:
            continue
        if isinstance(node, ast.Call):
            if _names_foreign_host(node):
                foreign.update(id(keyword.value) for keyword in node.keywords)
            name = _called(node)
            if name in _CLIENTS:
                of_clients.update(map(id, _told(node)))
            elif name in _CONNECTING:
                of_connections.update(map(id, _told(node)))
        for value, number in finder(node):
            if id(value) in foreign:
                continue
            is_clients = id(value) in of_clients or (
                number in _SERVICE_PORTS and id(value) in of_connections
            )
            place = (getattr(value, "lineno", 0), getattr(value, "col_offset", 0), number)
            (gone_to if is_clients else served).append(place)
    numbers = _valid(number for _, _, number in sorted(served))
    open_ = {number for line, _, number in served if not any(line in lines for lines in guarded)}
    return Ports(
        served=numbers,
        guarded=tuple(number for number in numbers if number not in open_),
        gone_to=tuple(
            number
            for number in _valid(number for _, _, number in sorted(gone_to))
            if number not in numbers
        ),
    )


def _valid(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number for number in numbers if 1 <= number <= MAX_PORT))


def _addresses(text: str) -> Iterator[tuple[re.Match[str], int]]:
    for match in _ADDRESS.finditer(text):
        before = text[max(0, match.start() - 2 * _LONGEST_SCHEME) : match.start()]
        head, separator, user = before.rpartition("://")
        if separator and (not user or (user.endswith("@") and "/" not in user)):
            scheme = _SCHEME.search(head[-_LONGEST_SCHEME:])
            if scheme and scheme.group(1).lower() in _SERVICES:
                continue
        elif before.endswith("@"):  # an account on this machine, as ssh names it
            continue
        yield match, int(match.group(1))


def _in_constant(node: ast.Constant) -> Iterator[_Hit]:
    if isinstance(node.value, str):
        for _, number in _addresses(node.value):
            yield node, number
        for option in _OPTION.finditer(node.value):
            yield node, int(option.group(1))


def _in_formatted(node: ast.JoinedStr) -> Iterator[_Hit]:
    """Find the port in a formatted URL whose host is a variable."""
    is_url = False
    after_variable = False
    for value in node.values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            match = _AFTER_HOST.match(value.value)
            if is_url and after_variable and match:
                yield value, int(match.group(1))
            is_url = is_url or value.value.endswith("://")
            after_variable = False
        else:
            after_variable = True


def _in_keyword(node: ast.keyword) -> Iterator[_Hit]:
    if is_port_name(node.arg):
        yield from _numbers(node.value)


def _in_assignment(node: ast.Assign | ast.AnnAssign | ast.NamedExpr) -> Iterator[_Hit]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if node.value is not None and any(map(_is_port_target, targets)):
        yield from _numbers(node.value)


def _in_defaults(node: ast.arguments) -> Iterator[_Hit]:
    positional = [*node.posonlyargs, *node.args]
    pairs: list[tuple[ast.arg, ast.expr | None]] = []
    if node.defaults:
        pairs += zip(positional[-len(node.defaults) :], node.defaults, strict=True)
    pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
    for argument, default in pairs:
        if default is not None and is_port_name(argument.arg):
            yield from _numbers(default)


def _in_dict(node: ast.Dict) -> Iterator[_Hit]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and is_port_name(key.value):
            yield from _numbers(value)


def _in_list(node: ast.Tuple | ast.List) -> Iterator[_Hit]:
    yield from _in_sequence(node.elts)


def _in_call(node: ast.Call) -> Iterator[_Hit]:
    yield from _in_sequence(node.args)
    # The default of a command-line option: add_argument("--port", default=8000).
    if any(isinstance(item, ast.Constant) and is_port_name(item.value) for item in node.args):
        for keyword in node.keywords:
            if keyword.arg == "default":
                yield from _numbers(keyword.value)


def _in_sequence(items: Sequence[ast.expr]) -> Iterator[_Hit]:
    """Find a host followed by a port, and ``--port`` followed by its value."""
    for left, right in itertools.pairwise(items):
        if not isinstance(left, ast.Constant) or not isinstance(left.value, str):
            continue
        option = left.value.startswith("--") and is_port_name(left.value)
        if option:
            yield from _numbers(right)
        elif _LOCAL_HOST.fullmatch(left.value) and _is_integer(right):
            # An empty string before a small number is seldom the address of every interface.
            lowest = 1 if left.value else _FIRST_FREE_PORT
            yield from (hit for hit in _numbers(right) if hit[1] >= lowest)


def _called(call: ast.Call) -> str:
    """Give the last name of what is called."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _told(call: ast.Call) -> Iterator[ast.AST]:
    """Give all that the arguments of a call hold, but for what is told to others in them."""
    stack: list[ast.AST] = [*call.args, *(keyword.value for keyword in call.keywords)]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.Call) or _called(node) in _DEFAULT_GETTERS:
            stack += ast.iter_child_nodes(node)


def _names_foreign_host(call: ast.Call) -> bool:
    hosts = [keyword.value for keyword in call.keywords if keyword.arg in _HOST_NAMES]
    hosts += call.args[:1]
    for host in hosts:
        if isinstance(host, ast.Constant) and isinstance(host.value, str):
            text = host.value
            if "." in text and "/" not in text and ":" not in text:
                return not _LOCAL_HOST.fullmatch(text)
    return False


def is_port_name(name: object) -> bool:
    """Say whether a variable, argument, key or option of that name holds a port that is served."""
    if not isinstance(name, str) or not _PORT_NAME.search(name):
        return False
    return _SERVICES.isdisjoint(re.split(r"[_-]", name.lower()))


def _is_port_target(target: ast.expr) -> bool:
    if isinstance(target, ast.Name):
        return is_port_name(target.id)
    return isinstance(target, ast.Attribute) and is_port_name(target.attr)


def _is_integer(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _numbers(node: ast.expr, depth: int = 0) -> Iterator[_Hit]:
    """Give the numbers that an expression which stands for ports may come to."""
    if depth > _DEEPEST:
        return
    match node:
        case ast.Constant(value=bool()):
            return
        case ast.Constant(value=int(number)):
            yield node, number
        case ast.Constant(value=str(text)) if re.fullmatch(r"[0-9]{1,5}", text):
            yield node, int(text)
        case ast.BoolOp(values=items) | ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                yield from _numbers(item, depth + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _numbers(body, depth + 1)
            yield from _numbers(orelse, depth + 1)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=items) if (
            name in _DEFAULT_GETTERS
        ):
            for item in [*items, *(k.value for k in node.keywords if k.arg == "default")]:
                yield from _numbers(item, depth + 1)
        case _:
            return


_FINDERS: dict[type[ast.AST], Callable[[Any], Iterator[_Hit]]] = {
    ast.AnnAssign: _in_assignment,
    ast.Assign: _in_assignment,
    ast.Call: _in_call,
    ast.Constant: _in_constant,
    ast.Dict: _in_dict,
    ast.JoinedStr: _in_formatted,
    ast.List: _in_list,
    ast.NamedExpr: _in_assignment,
    ast.Tuple: _in_list,
    ast.arguments: _in_defaults,
    ast.keyword: _in_keyword,
}
