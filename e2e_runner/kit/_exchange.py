"""A request and the response to it in words, with what is secret in them masked. Pure.

Responses are told by what they have, not by their class: httpx, requests, aiohttp and others differ.
"""

import re
from collections.abc import Collection
from typing import Any

from e2e_runner.kit._words import said
from e2e_runner.text import one_line, plural, strip_ansi

_LONGEST_SENT = 1000  # characters of what was sent
_LONGEST_RECEIVED = 2000  # characters of what came
_MOST_LINES = 60  # of each of them
_LARGEST_PARSED = 1_000_000  # characters of JSON that are laid out

_SECRET = re.compile(
    r"pass(word|wd|phrase|code)|\bpwd|_pwd|secret|token|api[-_]?key|authorization|credential"
    r"|private[-_]?key|signature|cookie",
    re.IGNORECASE,
)
_MASK = "***"
_SHORTEST_SECRET = 6  # characters; what is shorter may be part of any word


def status_of(response: object) -> int:
    """Give the status of a response. Raises TypeError for what is none."""
    for name in ("status_code", "status"):
        came = getattr(response, name, None)
        if isinstance(came, int):
            return came
    remedy = "; it is to be awaited first" if hasattr(response, "__await__") else ""
    if remedy and hasattr(response, "close"):
        response.close()
    raise TypeError(
        f"api_response({type(response).__name__}, ...): it takes a response, "
        f"with its status as .status_code or .status{remedy}"
    )


def unexpected(response: object, came: int, status: int | Collection[int]) -> str:
    """Say what was asked, and what came instead of `status`."""
    request = _attribute(response, "request") or _attribute(response, "request_info")
    method = _attribute(request, "method") or _attribute(response, "method")
    url = _attribute(request, "url") or _attribute(response, "url")
    asked = " ".join(one_line(str(part)) for part in (method, _masked_url(url)) if part)
    expected = _phrase(status) if isinstance(status, int) else _phrases(status)
    lines = [f"{asked}{': ' if asked else ''}expected {expected}, got {_phrase(came)}"]
    secrets: set[str] = set()
    sent = _sent(request, secrets)
    lines += _block("sent", sent, _LONGEST_SENT)
    received = _received(response, secrets)
    for secret in sorted(secrets, key=len, reverse=True):
        received = received.replace(secret, _MASK)
    lines += _block("received", received, _LONGEST_RECEIVED)
    return "\n".join(lines)


def masked_variable(name: str, value: str) -> str:
    """Give the value of a variable as it may be shown.

    >>> masked_variable("JWT_SECRET", "hunter2"), masked_variable("LOG_LEVEL", "debug")
    ('***', 'debug')
    >>> masked_variable("DATABASE_URL", "postgresql://maria:hunter2@db/shop")
    'postgresql://maria:***@db/shop'
    """
    if _SECRET.search(name):
        return _MASK
    return _masked_url(value) if "://" in value else value


def _attribute(value: object, name: str) -> Any:
    """Get an attribute, or None: that of a response that was made by hand may raise."""
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - of a class that we know nothing of
        return None


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return f"{int(status)} {HTTPStatus(status).phrase}"
    except ValueError:  # a number of the server's own
        return str(status)


def _phrases(status: Collection[int]) -> str:
    if isinstance(status, range) and len(status) > 1 and status.step == 1:
        return f"{status.start} to {status.stop - 1}"
    words = [_phrase(each) for each in status]
    if not words:
        return "none at all"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _block(title: str, text: str, most: int) -> list[str]:
    """Lay foreign text out: on the line of its title, or below it."""
    text = strip_ansi(text)
    lines = [one_line(line) for line in text[:most].expandtabs().splitlines()]
    if len(text) > most or len(lines) > _MOST_LINES:
        del lines[_MOST_LINES:]
        lines.append(f"… ({len(text):,} characters in all)")
    if len(lines) > 1:
        return [f"  {title}:", *(f"    {line}" for line in lines)]
    return [f"  {title}: {line}" for line in lines]


def _masked_url(url: object) -> str:
    """Mask the password and the secret values of the query of an address."""
    from urllib.parse import urlsplit

    if url is None:
        return ""
    try:
        parts = urlsplit(str(url))
        host = parts.netloc.rpartition("@")
        name, colon, _ = host[0].partition(":")
        user = f"{name}{colon}{_MASK if colon else ''}{host[1]}"
    except ValueError:  # no address that anybody could have asked
        return str(url)
    query = "&".join(_masked_pair(pair) for pair in parts.query.split("&"))
    return parts._replace(netloc=f"{user}{host[2]}", query=query).geturl()


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={_MASK}" if equals and value and _SECRET.search(name) else pair


def _sent(request: object, secrets: set[str]) -> str:
    """Give the body of a request with what is secret in it masked; note that in `secrets`."""
    import json
    from urllib.parse import parse_qsl

    body = _attribute(request, "content")  # httpx
    if body is None:
        body = _attribute(request, "body")  # requests
    if isinstance(body, bytes | bytearray):
        try:
            body = bytes(body).decode()
        except UnicodeDecodeError:
            return f"{plural(len(body), 'byte')} that are no text"
    if not isinstance(body, str):
        return ""
    kind = _content_type(request)
    if "multipart/" in kind:
        return f"{plural(len(body), 'character')} of {kind.partition(';')[0]}"
    if "x-www-form-urlencoded" in kind:
        secrets.update(
            value
            for name, value in parse_qsl(body)
            if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
        )
        return "&".join(_masked_pair(pair) for pair in body.split("&"))
    try:
        return json.dumps(_masked(json.loads(body), secrets), ensure_ascii=False)
    except (ValueError, RecursionError):
        return body


def _content_type(request: object) -> str:
    try:
        return str(request.headers.get("content-type") or "").lower()  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - of a class that we know nothing of
        return ""


def _received(response: object, secrets: set[str]) -> str:
    """Give the body of a response, laid out if it is JSON, or why there is none to show."""
    if _attribute(response, "_content") is False:  # so requests marks it; reading may never end
        return "(not shown: the body was not read)"
    try:
        text = getattr(response, "text", "")
    except Exception as error:  # noqa: BLE001 - each library has its own for a body not read
        return f"(not shown: {said(error)})"
    if not isinstance(text, str):
        return "(not shown: await response.text() to see it)"
    return _laid_out(text, secrets) if text.strip() else "(an empty body)"


def _laid_out(text: str, secrets: set[str]) -> str:
    import json

    if len(text) > _LARGEST_PARSED:
        return text
    try:
        return json.dumps(_masked(json.loads(text), secrets), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _masked(value: Any, secrets: set[str]) -> Any:
    """Mask the values of secret keys, and note those that are texts."""
    match value:
        case dict():
            return {key: _masked_value(key, each, secrets) for key, each in value.items()}
        case list():
            return [_masked(each, secrets) for each in value]
    return value


def _masked_value(key: str, value: Any, secrets: set[str]) -> Any:
    if (
        isinstance(value, dict | list)
        or value in {None, "", True, False}
        or not _SECRET.search(key)
    ):
        return _masked(value, secrets)
    if isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
        secrets.add(value)
    return _MASK
