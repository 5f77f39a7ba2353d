"""Says whether running a Python file would do any work of its own. Pure.

The rule is a list of what is known to be no work. Whatever is not on it counts as work: an example
too many passes and says little, but one that is silently left out says that all is well.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from typing import TypeGuard

_NO_WORK = (
    *(ast.Import, ast.ImportFrom, ast.Pass),
    *((ast.TypeAlias,) if hasattr(ast, "TypeAlias") else ()),
)

# Calls, by their whole name, that only compute or name a value.
_VALUES = frozenset(
    {f"builtins.{name}" for name in ("abs", "all", "any", "bool", "bytearray", "bytes", "chr")}
    | {f"builtins.{name}" for name in ("classmethod", "complex", "dict", "dir", "enumerate")}
    | {f"builtins.{name}" for name in ("float", "format", "frozenset", "getattr", "globals")}
    | {f"builtins.{name}" for name in ("hasattr", "hash", "hex", "id", "int", "isinstance")}
    | {f"builtins.{name}" for name in ("issubclass", "iter", "len", "list", "max", "min")}
    | {f"builtins.{name}" for name in ("object", "ord", "property", "range", "repr", "reversed")}
    | {f"builtins.{name}" for name in ("round", "set", "slice", "sorted", "staticmethod", "str")}
    | {f"builtins.{name}" for name in ("sum", "super", "tuple", "type", "vars", "zip")}
    | {"builtins.bytes.fromhex", "builtins.dict.fromkeys", "builtins.int.from_bytes"}
    | {"asyncio.get_event_loop", "asyncio.new_event_loop", "copy.copy", "copy.deepcopy"}
    | {"functools.cache", "functools.lru_cache", "functools.partial", "functools.wraps"}
    | {"importlib.metadata.version", "importlib.util.find_spec", "logging.getLogger"}
    | {"os.cpu_count", "os.fspath", "os.getcwd", "os.getenv", "os.getpid"}
    | {"pathlib.Path", "pathlib.Path.cwd", "pathlib.Path.home", "pathlib.PurePath"}
    | {"pathlib.PurePosixPath", "re.compile", "re.escape", "shutil.which", "tempfile.gettempdir"}
    | {"textwrap.dedent", "threading.local", "time.monotonic", "time.perf_counter", "time.time"}
    | {f"itertools.{name}" for name in ("chain", "combinations", "count", "cycle", "islice")}
    | {f"itertools.{name}" for name in ("pairwise", "permutations", "product", "repeat")}
    | {"operator.attrgetter", "operator.itemgetter", "weakref.ref"}
)
# The same for everything below a name.
_VALUE_MODULES = (
    *("collections.", "contextvars.", "dataclasses.", "datetime.", "decimal.", "enum."),
    *("fractions.", "math.", "os.environ.", "os.path.", "platform."),
    *("pytest.mark.", "secrets.", "string.", "typing.", "typing_extensions."),
    *("urllib.parse.", "uuid.", "zoneinfo."),
)
# Functions of libraries that configure something and connect to nothing, by their last name: they
# are imported from more than one place.
_CONFIGURING = frozenset(
    {"async_scoped_session", "async_sessionmaker", "attrib", "backref", "column_property"}
    | {"confloat", "conint", "conlist", "constr", "create_async_engine", "create_engine"}
    | {"create_model", "declarative_base", "field", "get_logger", "ib", "mapped_column"}
    | {"relationship", "scoped_session", "sessionmaker"}
)
# Classes whose construction is work: it starts a process or opens a connection.
_WORKING_CLASSES = frozenset(
    {"BlockingConnection", "FTP", "FTP_TLS", "IMAP4", "IMAP4_SSL", "KafkaConsumer"}
    | {"KafkaProducer", "LMTP", "POP3", "POP3_SSL", "Popen", "SMTP", "SMTP_SSL", "Telnet"}
)
# Methods that compute a value of a value: of strings, paths, dates, tables and loggers.
_VALUE_METHODS = frozenset(
    {name for name in dir(str) if not name.startswith("_")}
    | {"absolute", "as_posix", "as_uri", "exists", "expanduser", "is_absolute", "is_dir"}
    | {"is_file", "joinpath", "relative_to", "resolve", "with_name", "with_stem", "with_suffix"}
    | {"astimezone", "date", "isoformat", "strftime", "time", "timestamp", "total_seconds"}
    | {"copy", "decode", "get", "getChild", "items", "keys", "union", "values"}
)
# Calls that may stand alone, because they prepare a module.
_PREPARING = frozenset(
    {"__all__.append", "__all__.extend", "dotenv.load_dotenv", "logging.basicConfig"}
    | {"logging.captureWarnings", "logging.config.dictConfig", "logging.disable"}
    | {"os.environ.setdefault", "os.environ.update", "sys.path.append", "sys.path.insert"}
    | {"warnings.filterwarnings", "warnings.simplefilter"}
)
_RUNNING_DECORATORS = frozenset({"anyio.run", "asyncio.run", "atexit.register", "trio.run"})
_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
_CLASS_NAME = re.compile(r"_*[A-Z]\w*")
_BUILTINS = frozenset(dir(builtins))
_DEEPEST = 20  # constructors that call constructors


def why_passive(body: list[ast.stmt]) -> str:
    r"""Say why running the statements of a file is no work; an empty string where it is work.

    >>> why_passive(ast.parse("import os\nURL = os.getenv('URL')").body)
    'only imports, definitions and plain assignments'
    >>> why_passive(ast.parse("import os\nos.mkdir('out')").body)
    ''
    """
    if not all(map(_is_constant, body)) and _Judge(body).work(body):
        return ""
    if all(map(_is_constant, body)):
        return "only a docstring" if body else "has no statements"
    if any(
        isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == "main"
        for statement in body
    ):
        return "defines main() and never calls it"
    return "only imports, definitions and plain assignments"


def is_guard(statement: ast.stmt) -> TypeGuard[ast.If]:
    """Say whether a statement tests ``__name__``."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in _evaluated(statement.test)
    )


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Judge:
    """Judges the statements of one file: its methods say whether something may be work."""

    def __init__(self, body: list[ast.stmt]) -> None:
        self._body = body
        self._imported: dict[str, str] | None = None  # local name -> whole name; None: not read yet
        self._classes: dict[str, ast.ClassDef] = {}
        self._functions: set[str] = set()
        self._assigned: set[str] = set()
        self._constructors: dict[str, bool] = {}  # class -> may be work
        self._depth = 0

    # --- statements ------------------------------------------------------------------------------

    def work(self, body: Iterable[ast.stmt], *, constructs: bool = False) -> bool:
        """Judge statements; `constructs` says that they are the body of a constructor."""
        stack = list(body)
        while stack:
            statement = stack.pop()
            if isinstance(statement, ast.If):
                if is_guard(statement) or self._computes(statement.test):
                    return True
                stack += statement.body + statement.orelse
            elif isinstance(statement, ast.Try):
                stack += statement.body + statement.orelse + statement.finalbody
                stack += [inner for handler in statement.handlers for inner in handler.body]
            elif isinstance(statement, ast.ClassDef):
                bases = [*statement.bases, *(each.value for each in statement.keywords)]
                if self._decorated(statement) or any(map(self._computes, bases)):
                    return True
                stack += statement.body
            elif not (constructs and _is_base_constructor(statement)) and self._simple(statement):
                return True
        return False

    def _simple(self, statement: ast.stmt) -> bool:
        """Judge a statement that holds no other."""
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            defaults = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
            return self._decorated(statement) or any(map(self._computes, defaults))
        if isinstance(statement, ast.Assign):
            return any(map(self._computes, [*statement.targets, statement.value]))
        if isinstance(statement, ast.AnnAssign):
            values = [statement.target, *([statement.value] if statement.value else [])]
            return any(map(self._computes, values))
        if isinstance(statement, ast.AugAssign):
            values = [statement.target, statement.value]
            return _divides_by_zero(statement.op, statement.value) or any(
                map(self._computes, values)
            )
        if isinstance(statement, ast.Expr):
            return not _is_constant(statement) and not self._prepares(statement.value)
        return not isinstance(statement, _NO_WORK)

    def _prepares(self, value: ast.expr) -> bool:
        if not isinstance(value, ast.Call):
            return False
        arguments = [*value.args, *(keyword.value for keyword in value.keywords)]
        name, _, _ = self._named(value.func)
        return name in _PREPARING and not any(map(self._computes, arguments))

    def _decorated(self, statement: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
        return any(
            self._named(decorator)[0] in _RUNNING_DECORATORS
            for decorator in statement.decorator_list
        )

    # --- values ----------------------------------------------------------------------------------

    def _computes(self, value: ast.expr) -> bool:
        """Judge the computation of a value."""
        for node in _evaluated(value):
            if isinstance(node, ast.Call):
                if not self._is_known(node):
                    return True
            elif isinstance(node, ast.BinOp):
                if _divides_by_zero(node.op, node.right):
                    return True
            elif isinstance(node, ast.Subscript):
                if isinstance(node.value, ast.Constant | ast.List | ast.Tuple | ast.Dict):
                    return True  # nobody writes that down but to see it raise
            elif isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
                return True
        return False

    def _is_known(self, call: ast.Call) -> bool:
        """Say whether a call is known to be no work; its arguments are judged apart."""
        func = call.func
        while isinstance(func, ast.Subscript):  # Queue[int]()
            func = func.value
        name, names, root = self._named(func)
        if not isinstance(root, ast.Name):
            return bool(names) and names[-1] in _VALUE_METHODS and self._is_value(root)
        if _is_value_name(name):
            return True
        last = name.rpartition(".")[2]
        imported = root.id in self._imports()
        if imported and last in _CONFIGURING:
            return True
        return _CLASS_NAME.fullmatch(last) is not None and self._constructs(
            root.id, last, is_builtin=name == f"builtins.{last}", below=bool(names)
        )

    def _constructs(self, root: str, name: str, *, is_builtin: bool, below: bool) -> bool:
        """Say whether calling the class `name`, of `root` where it is `below`, is no work."""
        if name in _WORKING_CLASSES:
            return False
        if is_builtin or root in self._imports():
            return True
        if root in self._classes:
            return below or not self._constructor_works(root)
        return root in self._assigned and not below  # Point = namedtuple(...)

    def _constructor_works(self, name: str) -> bool:
        """Judge the constructor of a class of this file, its bases in the file included."""
        if name in self._constructors:
            return self._constructors[name]
        if self._depth >= _DEEPEST:
            return True
        self._constructors[name] = False  # a class that constructs itself adds nothing
        self._depth += 1
        definition = self._classes[name]
        self._constructors[name] = any(
            isinstance(base, ast.Name)
            and (
                base.id in self._functions  # one of two classes of that name
                or (base.id in self._classes and self._constructor_works(base.id))
            )
            for base in definition.bases
        ) or any(
            self.work(method.body, constructs=True)
            for method in definition.body
            if isinstance(method, ast.FunctionDef) and method.name in _CONSTRUCTORS
        )
        self._depth -= 1
        return self._constructors[name]

    def _is_value(self, node: ast.expr) -> bool:
        """Say whether a method of `node` is one of a plain value: ``Path("a").parent.resolve()``."""
        while isinstance(node, ast.Call | ast.Subscript | ast.Attribute):
            inner = node.func if isinstance(node, ast.Call) else node.value
            name, _, root = self._named(inner)
            if isinstance(root, ast.Name):
                return _is_value_name(name) or _is_value_name(f"{name}.")
            node = root
        if isinstance(node, ast.BinOp):  # (ROOT / "data").resolve()
            sides = (node.left, node.right)
            return isinstance(node.op, ast.Div) and any(map(_is_text, sides))
        return _is_text(node)

    # --- names -----------------------------------------------------------------------------------

    def _named(self, node: ast.expr) -> tuple[str, list[str], ast.expr]:
        """Give the whole name of what ``a.b.c`` means, the names after ``a``, and the node ``a``."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        names.reverse()
        if not isinstance(node, ast.Name):
            return "", names, node
        root = self._imports().get(node.id)
        if root is None:
            own = node.id in self._functions | self._assigned | self._classes.keys()
            root = f"builtins.{node.id}" if node.id in _BUILTINS and not own else node.id
            if own and node.id != "__all__":
                root = f"<own>.{node.id}"
        return ".".join([root, *names]), names, node

    def _imports(self) -> dict[str, str]:
        """Give what the file imports; reads all the names that it binds, on first use."""
        if self._imported is None:
            self._imported = {}
            self._bind(self._imported)
        return self._imported

    def _bind(self, imported: dict[str, str]) -> None:
        for statement in _flat(self._body):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imported.update(_bound(statement))
            elif isinstance(statement, ast.ClassDef) and statement.name not in self._classes:
                self._classes[statement.name] = statement
            elif isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self._functions.add(statement.name)
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                self._assigned |= {each.id for each in _targets(statement)}
        # A function, or one of two classes of a name: calling it may be work, whatever else it is.
        for name in self._functions:
            imported.pop(name, None)
            self._classes.pop(name, None)
        for name in _bound_twice(self._body):
            imported.pop(name, None)
        self._assigned -= self._functions


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Give statements, with those inside of conditions and of attempts in place of these."""
    stack = list(body)
    while stack:
        statement = stack.pop()
        if isinstance(statement, ast.If):
            stack += statement.body + statement.orelse
        elif isinstance(statement, ast.Try):
            stack += statement.body + statement.orelse + statement.finalbody
            stack += [inner for handler in statement.handlers for inner in handler.body]
        else:
            yield statement


def _bound(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Give the names that an import binds, each with the whole name of what it is."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, alias.name if alias.asname else top
    else:
        module = "." * statement.level + (statement.module or "")
        for alias in statement.names:
            yield alias.asname or alias.name, f"{module}.{alias.name}"


def _bound_twice(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Give the names that are imported as two things, one after the other and not one or the other."""
    bound: dict[str, str] = {}
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, whole in _bound(statement):
                if bound.setdefault(name, whole) != whole:
                    yield name


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[ast.Name]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [each for each in targets if isinstance(each, ast.Name)]


def _evaluated(value: ast.expr) -> Iterator[ast.AST]:
    """Give every node that computing a value evaluates; without recursion."""
    stack: list[ast.AST] = [value]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.Lambda):
            stack += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif not isinstance(node, ast.Name | ast.Constant):
            stack += ast.iter_child_nodes(node)


def _is_value_name(name: str) -> bool:
    return name in _VALUES or name.startswith(_VALUE_MODULES)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _divides_by_zero(op: ast.operator, right: ast.expr) -> bool:
    return (
        isinstance(op, ast.Div | ast.FloorDiv | ast.Mod)
        and isinstance(right, ast.Constant)
        and isinstance(right.value, int | float)
        and not right.value
    )


def _is_base_constructor(statement: ast.stmt) -> bool:
    """Recognise ``super().__init__(...)``."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Attribute)
        and statement.value.func.attr in _CONSTRUCTORS
        and isinstance(statement.value.func.value, ast.Call)
        and isinstance(statement.value.func.value.func, ast.Name)
        and statement.value.func.value.func.id == "super"
    )
