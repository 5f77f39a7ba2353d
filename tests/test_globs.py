from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.globs import compile_glob, matches


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a.py", "a.py", True),
        ("a.py", "x/y/a.py", True),
        ("a.py", "x/ba.py", False),
        ("*.py", "x/a.py", True),
        ("x/*.py", "x/a.py", True),
        ("x/*.py", "y/x/a.py", False),
        ("x/*.py", "x/y/a.py", False),
        ("/a.py", "a.py", True),
        ("/a.py", "x/a.py", False),
        ("**/a.py", "a.py", True),
        ("**/a.py", "x/y/a.py", True),
        ("x/**/a.py", "x/a.py", True),
        ("x/**/a.py", "x/y/z/a.py", True),
        ("x/**", "x/y/z", True),
        ("x/**", "x", False),
        ("build", "build/a.py", True),
        ("build", "x/build/y/a.py", True),
        ("build/", "build", False),
        ("build/", "x/build/a.py", True),
        ("x/build", "x/build/a.py", True),
        ("a?.py", "ab.py", True),
        ("a?b", "a/b", False),
        ("[ab].py", "a.py", True),
        ("[!ab].py", "a.py", False),
        ("[!ab].py", "c.py", True),
        ("[a-c].py", "b.py", True),
        ("[c-a].py", "b.py", False),
        ("[]].py", "].py", True),
        ("[^x]", "^", True),
        ("[", "[", True),
        ("a[b", "a[b", True),
        (r"\*.py", "*.py", True),
        (r"\*.py", "a.py", False),
        ("a.py", "aXpy", False),
        ("*.py", "new\nline.py", True),
        ("*", "anything/at/all", True),
        ("A.py", "a.py", False),
    ],
)
def test_globs(pattern: str, path: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert matches(pattern, path) is expected


@given(st.text("ab*?[]!^-/\\.", max_size=12))
def test_any_string_is_a_pattern(pattern: str) -> None:
    matches(pattern, "a/b.a")


@given(st.text("ab/é\n.", min_size=1).filter(lambda text: text.strip("/") == text))
def test_a_name_without_special_characters_matches_itself(name: str) -> None:
    assert compile_glob(name).fullmatch(name)
    assert compile_glob(name).fullmatch(name + "/inside")


def _slow(pattern: str, path: str) -> bool:
    """Match the plain subset of globs character by character, the obvious way."""

    @cache
    def match(at: int, to: int) -> bool:  # noqa: PLR0911 - one return for each kind of character
        if at == len(pattern):
            return to == len(path)
        first = at == 0 or pattern[at - 1] == "/"
        if first and pattern.startswith("**/", at):
            starts = [to] + [i + 1 for i in range(to, len(path)) if path[i] == "/"]
            return any(match(at + 3, start) for start in starts)
        if first and pattern[at:] == "**":
            return to < len(path)
        if pattern[at] == "*":
            ends = [to]
            while ends[-1] < len(path) and path[ends[-1]] != "/":
                ends.append(ends[-1] + 1)
            return any(match(at + 1, end) for end in ends)
        if to == len(path):
            return False
        if pattern[at] == "?":
            return path[to] != "/" and match(at + 1, to + 1)
        return pattern[at] == path[to] and match(at + 1, to + 1)

    return match(0, 0)


_parts = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4)
_globs = st.lists(st.text("ab*?", min_size=1, max_size=3), min_size=2, max_size=4)


@given(_globs, _parts)
def test_globs_match_as_a_matcher_written_the_obvious_way(
    glob: list[str], parts: list[str]
) -> None:
    pattern = "/".join(glob)
    around = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    assert matches(pattern, "/".join(parts)) == any(_slow(pattern, each) for each in around)
