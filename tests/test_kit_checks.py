import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Generator
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.kit import CheckFailed, api_response, check


def message(actual: object, expected: object, why: str = "") -> list[str]:
    with pytest.raises(CheckFailed) as caught:
        check(actual, expected, why)
    return str(caught.value).splitlines()


# --- check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, 1, "x", [0], object()])
def test_what_is_true_passes(value: object) -> None:
    check(value)
    check(value, why="it is true")


@pytest.mark.parametrize("value", [False, 0, "", [], None])
def test_what_is_not_true_fails(value: object) -> None:
    with pytest.raises(CheckFailed) as caught:
        check(value, why="somebody answers")
    assert str(caught.value) == f"somebody answers: expected something true, got {value!r}"
    assert isinstance(caught.value, AssertionError)


async def _later() -> bool:
    return False


async def _one_after_another() -> AsyncIterator[bool]:
    yield False


def _never() -> bool:
    return False


class _Undecided:
    """May be awaited, and has a truth of its own all the same."""

    def __await__(self) -> Generator[Any, Any, bool]:
        raise NotImplementedError

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("make", "kind", "meant"),
    [
        (_later, "coroutine", r"it was not awaited; write check\(await \.\.\.\)"),
        (lambda: (x > 5 for x in [1, 2]), "generator", r"write check\(all\(\.\.\.\)\), or any"),
        (lambda: map(bool, [0]), "map", r"write check\(all\("),
        (lambda: filter(None, [0]), "filter", r"write check\(all\("),
        (_one_after_another, "async_generator", r"write check\(all\(\[\.\.\. async for"),
        (lambda: _never, "function", r"it was not called; write check\(_never\(\)\)"),
        (lambda: _later, "function", r"it was not called; write check\(_later\(\)\)"),
        (lambda: lambda: False, "function", r"it was not called; write check\(it\(\)\)"),
        (
            lambda: "".isdigit,
            "builtin_function_or_method",
            r"it was not called; write check\(isdigit\(\)\)",
        ),
    ],
)
def test_what_is_always_true_checks_nothing(
    make: Callable[[], object], kind: str, meant: str
) -> None:
    with pytest.raises(
        TypeError, match=rf"^it is so: check\({kind}\) is always true, whatever comes: {meant}"
    ):
        check(make(), why="it is so")


def test_a_task_is_not_its_result() -> None:
    async def main() -> None:
        task = asyncio.create_task(_later())
        with pytest.raises(TypeError, match="it was not awaited"):
            check(task)
        check(await task, False)

    asyncio.run(main())


def test_what_has_a_truth_of_its_own_is_asked_for_it() -> None:
    with pytest.raises(CheckFailed, match="expected something true"):
        check(_Undecided())


def test_to_expect_true_is_to_expect_no_less() -> None:
    check(True, True)
    assert message([0], True) == ["expected True, got [0]"]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner)
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


@given(value=json_like, other=json_like)
def test_equal_values_pass_and_others_get_a_short_message(value: object, other: object) -> None:
    check(value, value)
    if value == other:
        check(value, other)
        return
    lines = message(value, other)
    assert 1 <= len(lines) <= 22
    assert all(len(line) <= 700 for line in lines)
    assert not any(char in "\r\x1b\x85\u2028" for line in lines for char in line)


@pytest.mark.parametrize(
    ("actual", "expected", "line"),
    [
        (5, 7, "expected 7, got 5"),
        ("admin", "trader", "expected 'trader', got 'admin'"),
        (3, "3", "expected '3', got 3"),
        ((1, 2), [1, 2], "expected [1, 2], got (1, 2)"),
        (None, {"a": 1}, "expected {'a': 1}, got None"),
        ({1, 2}, {2, 3}, "expected {2, 3}, got {1, 2}"),
        (Decimal("1.1"), 1.1, "expected 1.1, got Decimal('1.1')"),
        (
            datetime(2026, 1, 1, tzinfo=UTC),
            None,
            "expected None, got datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)",
        ),
    ],
)
def test_short_values_are_told_on_one_line(actual: object, expected: object, line: str) -> None:
    first = message(actual, expected)[0]
    assert first == line
    assert message(actual, expected, "the token")[0] == f"the token: {line}"


def test_the_place_of_a_difference_comes_first() -> None:
    user = {"email": "b@example.com", "role": "trader", "active": True, "name": "Maria"}
    assert message({**user, "email": "a@example.com"}, user, "the user is read back") == [
        "the user is read back: ['email']: expected 'b@example.com', got 'a@example.com'",
        "  expected: {'email': 'b@example.com', 'role': 'trader', 'active': True, 'name': 'Maria'}",
        "  got:      {'email': 'a@example.com', 'role': 'trader', 'active': True, 'name': 'Maria'}",
    ]


def test_differences_are_told_wherever_they_are() -> None:
    expected = {"bots": [{"id": n, "tags": ("a", "b")} for n in range(5)], "total": 5, "next": None}
    actual = {"bots": [{"id": n, "tags": ("a", "b")} for n in range(5)], "total": 5, "page": 2}
    actual["bots"][3] = {"id": 3, "tags": ("a", "c")}  # type: ignore[index]
    lines = message(actual, expected)
    assert lines[0] == "['bots'][3]['tags'][1]: expected 'b', got 'c'"
    assert lines[3:] == [
        "  ['next'] is missing: expected None",
        "  ['page'] was not expected: 2",
    ]


def test_what_is_missing_in_a_list_moves_nothing_else() -> None:
    users = [{"id": number, "email": f"user{number}@example.com"} for number in range(30)]
    fewer = [user for user in users if user["id"] != 7]
    lines = message(fewer, users, "all users are listed")
    assert lines[0] == "all users are listed: expected 30 items, got 29"
    assert lines[3:] == ["  [7] is missing: expected {'id': 7, 'email': 'user7@example.com'}"]
    assert message(users, fewer)[3:] == [
        "  [7] was not expected: {'id': 7, 'email': 'user7@example.com'}"
    ]


def test_sets_are_told_apart() -> None:
    names = {f"symbol {number}" for number in range(20)}
    assert message(names - {"symbol 3"} | {"new"}, names)[0::3] == [
        "missing: 'symbol 3'",
        "  not expected: 'new'",
    ]


def test_long_texts_are_shown_where_they_part() -> None:
    lines = message("a" * 500 + "x" + "b" * 500, "a" * 500 + "y" + "b" * 500, "the export")
    assert lines[0] == (
        f"the export: from character 470 on, expected '{'a' * 30}y{'b' * 29}', "
        f"got '{'a' * 30}x{'b' * 29}'"
    )
    assert lines[1] == f"  expected: '{'a' * 299}… (1,003 characters)"
    assert message(b"\x00" * 100, b"\x00" * 101)[0].startswith("from character 70 on, expected b'")


def test_texts_of_several_lines_are_compared_by_lines() -> None:
    expected = "\n".join(f"line {number} of the report" for number in range(10))
    assert message(expected.replace("line 4", "row 4"), expected)[0:1] == ["the texts differ"]
    assert message(expected.replace("line 4", "row 4"), expected)[3:] == [
        *("  --- expected", "  +++ got", "  @@ -4,3 +4,3 @@", "   line 3 of the report"),
        *("  -line 4 of the report", "  +row 4 of the report", "   line 5 of the report"),
    ]


def test_many_differences_are_cut() -> None:
    lines = message(list(range(1000)), list(range(1, 1001)))
    assert len(lines) <= 23
    lines = message([n + 1 for n in range(100)], [-n for n in range(100)])
    assert lines[0] == "[0]: expected 0, got 1"
    assert lines[-1] == "  and more"
    assert len(lines) == 22


def test_long_lists_of_different_lengths_are_told_by_where_they_part() -> None:
    alike = [0] * 100_000  # to align them would take many minutes
    lines = message([*alike, 1, 2], [*alike, 3])
    assert lines[0] == "expected 100,001 items, got 100,002"
    assert lines[3:] == ["  [100000] is the first that differs"]
    assert message({"rows": alike[1:]}, {"rows": alike})[3:] == [
        "  ['rows'][99999] is the first that differs"
    ]


def test_what_looks_alike_is_said_to() -> None:
    class Money(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    assert message(Money("5"), "5") == [
        "expected '5', and got what looks alike but is not equal (str expected, Money came)"
    ]
    assert "float expected, float came" in message(float("nan"), float("nan"))[0]


def test_a_reason_in_the_wrong_place_is_noticed() -> None:
    count = 2
    assert message(count == 3, "three rows") == [
        "expected 'three rows', got False; if that text says why, name it: check(..., why=...)"
    ]


class Array:
    """Compares item by item, as numpy's do."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __eq__(self, other: object) -> Any:
        others = other.items if isinstance(other, Array) else other
        assert isinstance(others, list)
        return Array([one == two for one, two in zip(self.items, others, strict=True)])

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        if len(self.items) == 1:
            return bool(self.items[0])
        raise ValueError("The truth value of an array is ambiguous. Use a.any() or a.all()")

    def tolist(self) -> list[Any]:
        return self.items


def test_arrays_are_not_compared_by_guessing() -> None:
    said = message(Array([1, 2]), Array([1, 2]), "the prices")[0]
    assert said.startswith("the prices: cannot compare Array with Array by ==, which compares")
    assert "compare x.tolist()" in said
    assert said.endswith(
        "ValueError: The truth value of an array is ambiguous. Use a.any() or a.all()"
    )
    check(Array([1, 2]).tolist(), [1, 2])
    check(Array([1]), [1])
    with pytest.raises(CheckFailed, match=r"^Array is neither true nor false: ValueError: The"):
        check(Array([1, 2]))


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise TypeError("not with me")

    def __repr__(self) -> str:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def test_objects_that_raise_are_told_of() -> None:
    assert message(Hostile(), 1) == [
        "cannot compare Hostile with int by ==: TypeError: not with me"
    ]
    assert message([1, Hostile()], [2, 3])[0] == (
        "expected [2, 3], got <list, whose repr raises RuntimeError>"
    )


def test_foreign_text_stays_on_its_line() -> None:
    assert message("\x1b[31m", "a\u2028b") == ["expected 'a\\u2028b', got '\\x1b[31m'"]


def test_python_does_not_leave_it_out() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", "from e2e_runner.kit import check; check(1, 2, why='sum')"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("CheckFailed: sum: expected 2, got 1\n")


# --- api_response --------------------------------------------------------------------------------

SECRET = "hunter2-hunter2"  # noqa: S105 - of nobody


def client(response: httpx.Response) -> httpx.Client:
    return httpx.Client(
        transport=httpx.MockTransport(lambda _: response), base_url="http://127.0.0.1:8000"
    )


def refused(ask: Callable[[], object], status: int | Collection[int] = 201) -> list[str]:
    response = ask()
    with pytest.raises(CheckFailed) as caught:
        api_response(response, status)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "status", [201, HTTPStatus.CREATED, {200, 201}, (201,), range(200, 300), [HTTPStatus.CREATED]]
)
def test_the_response_is_given_back(status: int | Collection[int]) -> None:
    response = httpx.Response(201)
    assert api_response(response, status) is response


def test_a_response_says_what_was_asked_and_what_came() -> None:
    with client(httpx.Response(409, json={"detail": "this e-mail is taken"})) as api:
        assert refused(lambda: api.post("/users", json={"email": "a@example.com", "n": 1})) == [
            "POST http://127.0.0.1:8000/users: expected 201 Created, got 409 Conflict",
            '  sent: {"email": "a@example.com", "n": 1}',
            "  received:",
            "    {",
            '      "detail": "this e-mail is taken"',
            "    }",
        ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({200}, "200 OK"),
        ([200, 201], "200 OK or 201 Created"),
        ((200, 201, 299), "200 OK, 201 Created or 299"),
        (range(200, 300), "200 to 299"),
        (range(200, 201), "200 OK"),
        ((), "none at all"),
        (HTTPStatus.OK, "200 OK"),
    ],
)
def test_what_was_expected_is_named(status: int | Collection[int], words: str) -> None:
    with client(httpx.Response(599)) as api:
        assert refused(lambda: api.get("/"), status) == [
            f"GET http://127.0.0.1:8000/: expected {words}, got 599",
            "  received: (an empty body)",
        ]


def test_secrets_are_masked_wherever_they_are_told() -> None:
    answer = {
        "detail": [{"loc": ["body", "password"], "input": SECRET}],
        "access_token": "eyJhbGciOi",
        "refreshToken": None,
        "total": 3,
    }
    with client(httpx.Response(422, json=answer)) as api:
        body = {"user": "maria", "Password": SECRET, "keys": [{"api_key": 1234, "name": "main"}]}
        said = refused(
            lambda: api.post(f"http://maria:{SECRET}@h/login?limit=3&token={SECRET}", json=body)
        )
        form = refused(lambda: api.post("/login", data={"username": "maria", "password": SECRET}))
    assert said[0] == (
        "POST http://maria:***@h/login?limit=3&token=***: "
        "expected 201 Created, got 422 Unprocessable Entity"
    )
    assert said[1] == (
        '  sent: {"user": "maria", "Password": "***", "keys": [{"api_key": "***", "name": "main"}]}'
    )
    text = "\n".join(said)
    assert '"input": "***"' in text
    assert '"access_token": "***"' in text
    assert '"refreshToken": null' in text
    assert '"total": 3' in text
    assert form[1] == "  sent: username=maria&password=***"
    for shown in (text, "\n".join(form)):
        assert SECRET not in shown
        assert "eyJhbGciOi" not in shown


@given(secret=st.text(st.characters(categories=["L", "N"]), min_size=6), key=st.text(max_size=5))
def test_no_secret_that_was_sent_is_ever_shown(secret: str, key: str) -> None:
    sent = {f"{key}_password": secret, "nested": [{"client_secret": secret}]}
    marked = f"<{secret}>"
    with client(httpx.Response(500, text=f"no {marked}")) as api:
        said = "\n".join(refused(lambda: api.post("/", json=sent, params={"token": secret})))
    assert marked not in said
    assert f'"{secret}"' not in said


def test_a_body_is_cut() -> None:
    with client(httpx.Response(500, text="x" * 10_000)) as api:
        said = refused(lambda: api.post("/", content=b"y" * 5000))
    assert said[1:] == [
        *("  sent:", f"    {'y' * 1000}", "    … (5,000 characters in all)"),
        *("  received:", f"    {'x' * 2000}", "    … (10,000 characters in all)"),
    ]
    with client(httpx.Response(500, text="<p>\n" * 400)) as api:
        said = refused(lambda: api.get("/"))
    assert said[-1] == "    … (1,600 characters in all)"
    assert len(said) == 63


def test_a_body_stays_in_its_place() -> None:
    with client(httpx.Response(500, content=b"a\tb\r\n\x1b[31mred\x1b[0m\x07\x00\xff")) as api:
        assert refused(lambda: api.get("/"))[1:] == [
            *("  received:", "    a       b", "    red\\x07\\x00\ufffd"),
        ]


def test_a_body_that_is_no_text_is_counted() -> None:
    with client(httpx.Response(500)) as api:
        said = refused(lambda: api.post("/", files={"f": b"\xff\x00"}))
        also = refused(lambda: api.post("/", files={"f": b"text"}, data={"password": SECRET}))
    assert said[1].endswith("bytes that are no text")
    assert also[1].startswith("  sent: ")
    assert also[1].endswith("characters of multipart/form-data")


def test_json_that_is_too_deep_is_shown_as_it_is() -> None:
    with client(httpx.Response(500, text="[" * 100_000)) as api:
        assert refused(lambda: api.get("/"))[2] == f"    {'[' * 2000}"


def test_a_stream_that_was_not_read_is_said_to_be() -> None:
    async def stream() -> None:
        transport = httpx.MockTransport(
            lambda _: httpx.Response(200, stream=httpx.ByteStream(b"endless"))
        )
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://h") as api,
            api.stream("GET", "/") as response,
        ):
            said = refused(lambda: response, 404)
        assert said[0] == "GET http://h/: expected 404 Not Found, got 200 OK"
        assert said[1].startswith("  received: (not shown: ResponseNotRead: Attempted to access")

    asyncio.run(stream())


def test_a_response_that_was_made_by_hand_has_no_request() -> None:
    assert refused(lambda: httpx.Response(500, text="broken")) == [
        "expected 201 Created, got 500 Internal Server Error",
        "  received: broken",
    ]


def test_a_request_whose_body_was_streamed_has_none_to_show() -> None:
    def parts() -> Any:
        yield b"a"

    request = httpx.Request("POST", "http://h/", content=parts())
    response = httpx.Response(500, text="broken", request=request)
    assert refused(lambda: response)[1:] == ["  received: broken"]


def test_responses_like_those_of_requests() -> None:
    request = SimpleNamespace(
        method="PUT",
        url="http://h/?password=abcdefg",
        body=b'{"token": "abcdefg"}',
        headers={"Content-Type": "application/json"},
    )
    response = SimpleNamespace(
        status_code=500, request=request, text="abcdefg", _content=b"abcdefg"
    )
    assert refused(lambda: response, 200) == [
        "PUT http://h/?password=***: expected 200 OK, got 500 Internal Server Error",
        '  sent: {"token": "***"}',
        "  received: ***",
    ]
    response._content = False
    assert refused(lambda: response, 200)[2] == "  received: (not shown: the body was not read)"


def test_responses_like_those_of_aiohttp() -> None:
    class Response:
        status = 404
        method = "GET"
        url = "http://h/users/1"

        async def text(self) -> str:
            raise AssertionError

    assert refused(Response, 200) == [
        "GET http://h/users/1: expected 200 OK, got 404 Not Found",
        "  received: (not shown: await response.text() to see it)",
    ]


def test_what_is_no_response_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^api_response\(dict, \.\.\.\): it takes a response"):
        api_response({}, 200)

    async def ask() -> httpx.Response:
        return httpx.Response(200)

    asked = ask()
    with pytest.raises(TypeError, match="it is to be awaited first"):
        api_response(asked, 200)  # type: ignore[unused-coroutine]


@pytest.mark.parametrize("status", ["200", b"200", None, 200.0, ["200"], {201, "200"}])
def test_a_status_is_a_number(status: Any) -> None:
    response = httpx.Response(200)
    with pytest.raises(
        TypeError, match=r"^api_response\(\.\.\., .*\): a status is a number, as in "
    ):
        api_response(response, status)
    assert api_response(response, range(200, 300)) is response
