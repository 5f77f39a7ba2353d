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


@pytest.mark.parametrize(
    "source",
    [
        "",
        "'''Only a docstring.'''",
        "import os\nfrom sys import path",
        "def f(): print(1)",
        "class A:\n    print(1)",
        "async def f(): ...",
        "X = 1\nY: int = 2\nX += 1\napp = FastAPI()",
        "@app.get('/')\ndef f(): ...",
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b",
        "try:\n    import a\nexcept ImportError:\n    a = None",
        "import sys\nsys.path.insert(0, 'x')\nimport a",
        "import logging\nlogging.basicConfig()\ndef f(): ...",
    ],
)
def test_files_that_do_nothing_by_themselves(source: str) -> None:
    assert _facts(source).passive


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "assert True",
        "raise SystemExit(0)",
        "for x in y: pass",
        "with a: pass",
        "result = asyncio.run(main())",
        "code = subprocess.run(['x']).returncode",
        "if x:\n    print(1)",
        "try:\n    import a\nexcept ImportError:\n    raise",
        "if __name__ == '__main__':\n    pass",
        "del x",
        "app.include_router(router)",
    ],
)
def test_files_that_do_something(source: str) -> None:
    assert not _facts(source).passive


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
