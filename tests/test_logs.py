import os
import re
from pathlib import Path

import pytest

from e2e_runner.logs import Log, first_match, tail


def test_a_log_within_its_limit_is_kept_to_the_byte(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    os.write(log.fd, b"x" * 1000)
    log.bound()
    log.close()
    assert (tmp_path / "a.log").read_bytes() == b"x" * 1000
    assert log.dropped == 0


def test_a_flood_loses_its_middle_and_says_how_much(tmp_path: Path) -> None:
    lines = [f"{n:07}\n".encode() for n in range(100_000)]  # 800 kB
    log = Log(tmp_path / "a.log", limit=80_000)
    for start in range(0, len(lines), 1000):
        os.write(log.fd, b"".join(lines[start : start + 1000]))
        log.bound()
    log.close()
    data = (tmp_path / "a.log").read_bytes()
    head, note, rest = re.split(rb"\n\[(.*)\]\n", data)
    assert head == b"".join(lines)[:40_000].rstrip(b"\n") or head == b"".join(lines)[:40_000]
    assert b"".join(lines).endswith(rest)
    assert 10_000 <= len(rest) <= 50_000
    assert log.dropped == 800_000 - 40_000 - len(rest)
    assert note.startswith(b"... e2e-run dropped ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log"]


def test_a_flood_after_the_last_look_is_bounded_when_the_log_is_closed(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    os.write(log.fd, b"a" * 2000)
    log.bound()
    os.write(log.fd, b"b" * 5000)
    log.close()
    assert (tmp_path / "a.log").stat().st_size < 1200
    assert log.dropped == 7000 - 500 - 125


def test_words_that_come_during_a_cut_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    os.write(log.fd, b"a" * 2000)
    read, words = os.pread, [b"words\n", b"the last "]

    def read_while_it_writes(fd: int, count: int, offset: int) -> bytes:
        data = read(fd, count, offset)
        if words:
            os.write(log.fd, words.pop())
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", read_while_it_writes)
        log.bound()
    log.close()
    assert words == []
    assert (tmp_path / "a.log").read_bytes().endswith(b"a" * 110 + b"the last words\n")
    assert log.dropped == 2015 - 500 - 125


def test_one_write_far_beyond_the_limit_is_bounded_at_the_close(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    os.write(log.fd, b"a" * 50_000)
    log.close()
    assert (tmp_path / "a.log").stat().st_size < 1200


def test_new_text_follows_the_file_and_joins_split_characters(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    euro = "€".encode()
    os.write(log.fd, b"1 " + euro[:1])
    assert log.new_text() == "1 "
    os.write(log.fd, euro[1:] + b"\xff\n")
    assert log.new_text() == "€\ufffd\n"
    assert log.new_text() == ""
    log.close()
    assert log.new_text() == ""


def test_tail_begins_with_a_whole_line_and_survives_what_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(b"first\nsecond\nthird \xff\n")
    assert tail([file]) == ("first\nsecond\nthird \ufffd\n", False)
    assert tail([file], limit=12) == ("third \ufffd\n", True)
    assert tail([tmp_path / "none.log"]) == ("", False)
    one_line = tmp_path / "b.log"
    one_line.write_bytes(b"x" * 100)
    assert tail([one_line], limit=10) == ("x" * 10, True)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [(r"ERROR: \w+", "ERROR: boom"), (r"^WARN", None), (r"a{3}\nERROR", "aaa\nERROR")],
)
def test_first_match_finds_text_across_chunks(
    tmp_path: Path, pattern: str, found: str | None
) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(b"a" * (1024 * 1024 - 5) + b"\nERROR: boom\n" + b"b" * 100)
    assert first_match([file], [re.compile(pattern)]) == found


def test_the_log_of_a_script_that_removed_it_closes_quietly(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.log", limit=1000)
    os.write(log.fd, b"x")
    log.file.unlink()
    log.bound()
    log.close()
    assert tail([log.file]) == ("", False)
