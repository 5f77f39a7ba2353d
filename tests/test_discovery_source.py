import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.discovery.literals import is_port_name, ports_in_text
from e2e_runner.discovery.source import (
    LARGEST,
    Facts,
    analyse_python,
    analyse_text,
    decode,
    name_says_websocket,
)


def _facts(source: str) -> Facts:
    return analyse_python(textwrap.dedent(source).encode())


# --- ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "ports"),
    [
        ("run(app, port=8000)", (8000,)),
        ("run(app, http_port='8000')", (8000,)),
        ("PORT = 8000", (8000,)),
        ("PORT: int = 8000", (8000,)),
        ("self.port = 8000", (8000,)),
        ("PORTS = [8000, 8001]", (8000, 8001)),
        ("serverPort = 8000", (8000,)),
        ("PORT = int(os.environ.get('PORT', '8000'))", (8000,)),
        ("PORT = os.getenv('PORT') or 8000", ()),
        ("PORT = int(os.getenv('PORT') or 8000)", (8000,)),
        ("def serve(host='x', port=8000): ...", (8000,)),
        ("def serve(*, port: int = 8000): ...", (8000,)),
        ("config = {'port': 8000, 'transport': 9}", (8000,)),
        ("x = '127.0.0.1:8000'", (8000,)),
        ("x = 'http://localhost:8000/a'", (8000,)),
        ("x = 'ws://0.0.0.0:8000'", (8000,)),
        ("x = 'http://[::1]:8000/'", (8000,)),
        ("s.bind(('localhost', 8000))", (8000,)),
        ("s.bind(('', 8000))", (8000,)),
        ("create_server(x, '127.0.0.1', 8000)", (8000,)),
        ("Popen(['uvicorn', 'a:b', '--port', '8000'])", (8000,)),
        ("Popen('uvicorn a:b --port 8000', shell=True)", (8000,)),
        ("Popen(['x', '--port=8000'])", (8000,)),
        ("parser.add_argument('--port', type=int, default=8000)", (8000,)),
        ("x = f'http://{host}:8000/a'", (8000,)),
        ("x = f'http://localhost:{port}/'", ()),
        ("x = f'{hours}:30'", ()),
        ("if (port := 8000): pass", (8000,)),
        ("b = 8001\nport = 8000\nrun(port=8002)\nport = 8000", (8000, 8002)),
        # not ports that the script serves
        ("port = 0", ()),
        ("port = 65536", ()),
        ("port = True", ()),
        ("report = 8000; support = 1; transport = 2", ()),
        ("import_ = 8000", ()),
        ("DB_PORT = 5432", ()),
        ("redis_port = 6379", ()),
        ("x = 'postgresql+asyncpg://u:p@localhost:5432/db'", ()),
        ("x = 'http://api.example.com:8443/'", ()),
        ("connect('api.example.com', port=8443)", ()),
        ("connect(host='api.example.com', port=8443)", ()),
        ("connect(host='127.0.0.1', port=8443)", (8443,)),
        ("'''Open http://localhost:8000 in a browser.'''", ()),
        ("# http://localhost:8000", ()),
        ("x = '127.0.0.1:80000'", ()),
        ("x = ('a', 8000)", ()),
        ("pack('', 8); run_server()", ()),
        ("x = 'notlocalhost:8000'", ()),
    ],
)
def test_ports_in_python(source: str, ports: tuple[int, ...]) -> None:
    expected = (8000,) if "or 8000" in source else ports
    assert _facts(source).ports == expected


@pytest.mark.parametrize(
    ("source", "served", "gone_to"),
    [
        ("r = redis.Redis(host='localhost', port=6379)", (), (6379,)),
        ("r = Redis('localhost', 6380)", (), (6380,)),
        ("m = pymongo.MongoClient('localhost:27017')", (), (27017,)),
        ("m = MongoClient(['localhost:27017', 'localhost:27018'])", (), (27017, 27018)),
        ("r = Redis(port=int(os.getenv('REDIS', '6379')))", (), (6379,)),
        ("Elasticsearch('http://localhost:9201')", (), (9201,)),
        ("s.connect(('localhost', 6379))", (), (6379,)),
        ("socket.create_connection(('127.0.0.1', 5672), timeout=1)", (), (5672,)),
        ("await asyncio.open_connection('localhost', 11211)", (), (11211,)),
        ("await asyncpg.connect(host='localhost', port=5432)", (), (5432,)),
        # what it may have started itself, and what it names elsewhere too
        ("s.connect(('localhost', 8000))", (8000,), ()),
        ("http.client.HTTPConnection('localhost', 8000)", (8000,), ()),
        ("s.connect(('localhost', 6379))\ns.bind(('localhost', 6379))", (6379,), ()),
        ("PORT = 6379\nredis.Redis(port=6379)", (6379,), ()),
        ("redis.Redis(port=start(port=6379))", (6379,), ()),
        ("serve(host='localhost', port=6379)", (6379,), ()),
    ],
)
def test_ports_that_a_client_goes_to(
    source: str, served: tuple[int, ...], gone_to: tuple[int, ...]
) -> None:
    facts = _facts(source)
    assert (facts.ports, facts.gone_to) == (served, gone_to)


def test_ports_that_an_import_has_no_part_in() -> None:
    facts = _facts(
        """
        PORT = 8001
        if __name__ == "__main__":
            run(port=8000)
            run(port=8001)
        elif x:
            run(port=8002)
        """
    )
    assert (facts.ports, facts.guarded_ports) == ((8001, 8000, 8002), (8000,))


@pytest.mark.parametrize(
    ("source", "starts"),
    [
        ("import subprocess", True),
        ("os.system('redis-server &')", True),
        ("await asyncio.create_subprocess_exec('redis-server')", True),
        ("await anyio.open_process(['redis-server'])", True),
        ("client = docker.from_env()", True),
        ("print('processes')", False),
    ],
)
def test_scripts_that_may_start_programs(source: str, *, starts: bool) -> None:
    assert _facts(source).starts is starts


def test_ports_in_other_languages() -> None:
    text = """
    # http://localhost:1111
    // port = 2222
    curl http://localhost:8000/health
    server.listen(8001);
    const PORT = 8002, options = { port: 8003 };
    uvicorn app:app --port 8004
    curl postgres://localhost:5432
    timeout 3000; support=99
    """
    assert ports_in_text(text) == (8000, 8001, 8002, 8003, 8004)


@given(st.text("portPORT_-DB db", max_size=12))
def test_any_name_is_judged(name: str) -> None:
    assert is_port_name(name) in {True, False}


# --- websockets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import websockets", "websockets"),
        ("def f():\n    import websocket._app", "websocket._app"),
        ("from websockets.sync.client import connect", "websockets.sync.client"),
        ("import socketio", "socketio"),
        ("from starlette.websockets import WebSocketState", "starlette.websockets"),
        ("from fastapi import FastAPI, WebSocket", "WebSocket"),
        ("import aiohttp\nsession.ws_connect(url)", "ws_connect"),
        ("import aiohttp\nprint(aiohttp.ClientSession)", ""),
        ("import httpx", ""),
        ("from .websockets import x", ""),
        ("import news, wsgiref", ""),
    ],
)
def test_websocket_programs(source: str, found: str) -> None:
    assert _facts(source).websocket == found


def test_websocket_programs_in_other_languages() -> None:
    assert analyse_text(b'const WebSocket = require("ws");').websocket
    assert analyse_text(b"new WebSocket(url)").websocket
    assert not analyse_text(b"echo websocket").websocket


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("example_websocket_ticker", True),
        ("ws-chat", True),
        ("WebSockets", True),
        ("example_news", False),
        ("aws_upload", False),
        ("", False),
    ],
)
def test_names_that_say_websocket(stem: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert name_says_websocket(stem) is expected


# --- what a script does --------------------------------------------------------------------------


_NO_WORK = [
    "import os\nfrom sys import path",
    "def f(): print(1)",
    "def f(x=1, *, y: int = len('a')): print(1)",
    "async def f(): ...",
    "class A:\n    x = 1\n    y: int\n    def f(self): print(1)",
    "from models import Base, Column, Integer\nclass A(Base, table=True):\n    id = Column(Integer)",
    "X = 1\nY: int = 2\nZ: str\nX += 1\nX, Y = Y, X",
    "__all__ = ['a']\n__all__ += ['b']\n__all__.extend(['c'])",
    "X = {'a': [1, (2,)], **{}}\nY = X['a'][0]\nZ = [x * 2 for x in range(3) if x]",
    "X = 60 * 60 / 2\nY = 7 % 2\nZ = X / Y\nA = 'a' if X else -Y\nB = f'{A}:{Y}'\nC = 'v%s' % 1",
    "from fastapi import APIRouter, FastAPI\napp = FastAPI()\nrouter: APIRouter = APIRouter()",
    "import flask\napp = flask.Flask(__name__)\n@app.get('/')\ndef f(): ...",
    "import typer\napp = typer.Typer()\n@app.command()\ndef f(x=typer.Option(1)): print(x)",
    "import logging\nlog = logging.getLogger(__name__).getChild('x')\nlogging.basicConfig(level=1)",
    "from pathlib import Path\nHERE = Path(__file__).resolve().parent / 'a'",
    "from pathlib import Path as P\nROOT = P.cwd()\nDATA = (ROOT / 'data').absolute()",
    "import os\nURL = os.getenv('URL', 'x')\nKEYS = os.environ.get('K', '').split(',')",
    "import os\nA = os.environ['A'].strip()\nos.environ['B'] = 'x'\nos.environ.setdefault('C', 'x')",
    "import os.path as p\nX = p.join(p.dirname(__file__), 'a')",
    "import re\nX = re.compile('a', re.I)\nY = ','.join(['a']).upper()",
    "from typing import NewType, TypeVar\nT = TypeVar('T')\nId = NewType('Id', int)\nX = Id",
    "from collections import namedtuple\nPoint = namedtuple('Point', 'x y')\nZERO = Point(0, 0)",
    "from dataclasses import dataclass, field\n@dataclass\nclass A:\n    x: list = field()\na = A()",
    (
        "from decimal import Decimal\nfrom datetime import datetime, timedelta\nfrom uuid import uuid4\n"
        "A = Decimal('1')\nB = datetime.now() - timedelta(days=1)\nC = str(uuid4())\nD = uuid4().hex"
    ),
    (
        "import asyncio, threading, itertools\nA = asyncio.Queue[int](3)\nB = threading.local()\n"
        "C = itertools.count(1)\nD = object()\nE = sorted({3, 1}, key=lambda x: -x)"
    ),
    (
        "from sqlalchemy import create_engine\nfrom sqlalchemy.orm import declarative_base, sessionmaker\n"
        "engine = create_engine('sqlite://')\nBase = declarative_base()\nS = sessionmaker(engine)\ns = S()"
    ),
    "import httpx\nclient = httpx.Client(timeout=3)",
    "f = lambda: print(1)",
    (
        "try:\n    from importlib.metadata import version\n    V = version('x')\n"
        "except ImportError:\n    V = ''"
    ),
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import b",
    "import sys\nif sys.version_info >= (3, 11):\n    import a\nelse:\n    import b as a",
    "try:\n    import a\nexcept ImportError:\n    a = None",
    "import sys\nsys.path.insert(0, 'x')\nimport a",
    "from dotenv import load_dotenv\nload_dotenv()",
    "E = ValueError('x')",
    "class A:\n    def __init__(self, x):\n        super().__init__()\n        self.x = x\na = A(3)",
    "class A:\n    def __init__(self):\n        self.a = A()\na = A()",
]


@pytest.mark.parametrize("source", _NO_WORK)
def test_files_that_do_nothing_by_themselves(source: str) -> None:
    assert _facts(source).passive == "only imports, definitions and plain assignments"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "has no statements"),
        ("# only a comment", "has no statements"),
        ("'''Only a docstring.'''", "only a docstring"),
        ("def main(): print(1)", "defines main() and never calls it"),
        ("async def main(): ...\nX = 1", "defines main() and never calls it"),
    ],
)
def test_the_reason_is_told_precisely(source: str, reason: str) -> None:
    assert _facts(source).passive == reason


_WORK = [
    "print(1)",
    "assert True",
    "raise SystemExit(0)",
    "for x in y: pass",
    "with a: pass",
    "if x:\n    print(1)",
    "try:\n    import a\nexcept ImportError:\n    raise",
    "if __name__ == '__main__':\n    pass",
    "del x",
    "import app, router\napp.include_router(router)",
    "import asyncio\nresult = asyncio.run(main())",
    "import subprocess\ncode = subprocess.run(['x']).returncode",
    "import subprocess\nserver = subprocess.Popen(['x'])",
    "from subprocess import Popen as P\nserver = P(['x'])",
    "import httpx\nr = httpx.get(url).raise_for_status()",
    "import httpx\nr = httpx.get(url)",
    "import httpx\nr = httpx.Client().get(url)",
    "import httpx\nclient = httpx.Client()\nr = client.get(url)",
    "from urllib.request import urlopen\nbody = urlopen(url).read()",
    "def check(): ...\nresult = check()",
    "def Check(): ...\nresult = Check()",
    "def str(x): ...\nresult = str(1)",
    "from os import getenv\ndef getenv(x): ...\nresult = getenv('x')",
    "from shop import Client\norder = Client().place_order(1)",
    "from shop import check as Check\nok = Check()",
    "class A: ...\nclass A:\n    def __init__(self): print(1)\na = A()",
    "from shop import Client\nok = Client(check())",
    "from shop import Client\nClient()",
    "from shop import *\norder = Order()",
    "from shop import check\nresult: int = check()",
    "from shop import check\nx = 0\nx += check()",
    "from shop import check\ncheck().x = 1",
    "from shop import check\nif check():\n    x = 1",
    "from shop import check\ndef f(x=check()): ...",
    "from shop import check\nclass A(check()): ...",
    "from shop import check\nx = {'a': [check()]}",
    "from shop import check\nx = f'{check()}'",
    "from shop import check\nx = (lambda: check())()",
    "from shop import check\nx = list(map(check, cases))",
    "from shop import check\nx = list(itertools.starmap(check, cases))",
    "from shop import check\nsys.path.insert(0, check())",
    "from shop import Stub\nstub = Stub()\nreply = stub.PlaceOrder(1)",
    "row = conn.execute('SELECT 1')",
    "x = 1/0",
    "x = 1\nx //= 0",
    "x = 7 % 0.0",
    "x = [1][5]",
    "import json\ncfg = json.load(open('x'))",
    "from pathlib import Path\nx = Path('a').read_text()",
    "from pathlib import Path\nx = Path('a').unlink().resolve()",
    "from pathlib import Path\nx = Path.unlink(y)",
    "x = [print(i) for i in y]",
    "x = (1, print(2))",
    "class A:\n    print(1)",
    "class A:\n    x = 1\n    assert x",
    "class A:\n    class B:\n        x = open('y')",
    "class A:\n    def __init__(self): self.check()\na = A()",
    "class A:\n    def __post_init__(self): assert self.x\nclass B(A): ...\nb = B()",
    ("class A:\n    def __init__(self): print(1)\nclass B(A): ...\nb = B()\nclass A:\n    x = 1"),
    (
        "class A:\n    def __init__(self): self.b = B()\n"
        "class B:\n    def __init__(self): print(1)\na = A()"
    ),
    "import atexit\n@atexit.register\ndef f(): print(1)",
    "import asyncio\n@asyncio.run\n@lambda f: f()\nasync def f(): print(1)",
    "import threading\nthreading.Thread(target=f).start()",
    "x = input()",
    "x = eval('1')",
    "x = getattr(a, 'b')()",
    "x = __import__('a').b()",
]


@pytest.mark.parametrize("source", _WORK)
def test_files_that_do_something(source: str) -> None:
    assert not _facts(source).passive


@given(st.lists(st.sampled_from(_NO_WORK), max_size=4), st.sampled_from(_WORK), st.integers(0, 4))
def test_one_statement_that_works_makes_an_example(
    sources: list[str], work: str, place: int
) -> None:
    sources.insert(place, work)
    assert not _facts("\n".join(sources)).passive


def test_a_long_chain_of_constructors_ends() -> None:
    lines = [f"class A{i}:\n    def __init__(self): self.a = A{i + 1}()" for i in range(3000)]
    assert not _facts("\n".join([*lines, "a = A0()"])).passive


def test_guards_count_at_module_level_only() -> None:
    assert _facts("if __name__ == '__main__':\n    main()").guarded
    assert _facts("if '__main__' == __name__ and x:\n    main()").guarded
    assert not _facts("def f():\n    if __name__ == '__main__':\n        main()").guarded
    assert not _facts("x = __name__").guarded


def test_imports_with_their_level() -> None:
    facts = _facts(
        """
        import a.b, c
        from d import e
        from . import f
        from ..g import h
        uvicorn.run("demo_api.main:app")
        """
    )
    assert facts.imports == {
        (0, "a.b"),
        (0, "c"),
        (0, "d"),
        (0, "d.e"),
        (1, "f"),
        (2, "g"),
        (2, "g.h"),
        (0, "demo_api.main"),
    }


# --- sources of every sort -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"print 'old'\n",
        b"\0\0\0",
        b"x = '\0'",
        b"\xff\xfe\x00",
        b"# -*- coding: nonsense -*-\nx = 1\n",
        b"# -*- coding: utf-8 -*-\nx = '\xe9'\n",
        b"(" * 5000,
        b"x = " + b"-" * 200_000 + b"1",
        b"x = " + b"1+" * 100_000 + b"1",
        b"a" + b".b" * 100_000,
        b"x = 'a'" + b".upper()" * 2000,
        b"if x:\n    y = 1\n" + b"elif x:\n    y = 1\n" * 3000,
        b"\r\r\n\x0c",
        b"!\n" + b" \n" * 100_000,
        b"! " + b"localhost:1 " * 50_000,
        b"! from a import (\n" * 20_000,
    ],
)
def test_no_source_raises(data: bytes) -> None:
    analyse_python(data)
    analyse_text(data)
    decode(data)


@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    analyse_python(data)
    analyse_text(data)
    decode(data)


def test_other_encodings_are_read_as_python_reads_them() -> None:
    latin = "# -*- coding: latin-1 -*-\nNAME = 'é'\nPORT = 8000\nprint(NAME)\n".encode("latin-1")
    assert analyse_python(latin) == Facts(ports=(8000,))
    assert decode(latin).splitlines()[1] == "NAME = 'é'"
    marked = b"\xef\xbb\xbfPORT = 8000\nprint(1)\n"
    assert analyse_python(marked).ports == (8000,)
    assert decode(marked).startswith("PORT")


def test_what_does_not_parse_is_read_line_by_line() -> None:
    facts = _facts(
        """
        import a.b as c, d
        from e import f
        from .g import (h, i)
        import websockets
        x = match match match
        url = "http://localhost:8000"
        if __name__ == "__main__":
            main()
        """
    )
    assert facts == Facts(
        imports=frozenset(
            {(0, "a.b"), (0, "d"), (0, "e"), (0, "e.f"), (1, "g"), (1, "g.h"), (1, "g.i")}
            | {(0, "websockets")}
        ),
        guarded=True,
        websocket="websockets",
        ports=(8000,),
    )


def test_a_bad_escape_is_no_warning_here() -> None:
    assert _facts(r"print('\d')") == Facts()


def test_a_huge_source_is_not_analysed() -> None:
    assert analyse_python(b"PORT = 8000\n" + b"#" * LARGEST) == Facts()
