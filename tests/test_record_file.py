import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from harness import NOBODY
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner import record_file
from e2e_runner.record_file import MOST_READ, RecordFile
from e2e_runner.records import LONGEST_LINE, MetricTold, Record, SectionBegan, encode

ONE, TWO = SectionBegan(at=1, title="one"), SectionBegan(at=2, title="two")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[RecordFile]:
    file = RecordFile(tmp_path / "records")
    yield file
    file.close()


def write(made: RecordFile, data: bytes, flags: int = os.O_APPEND) -> None:
    fd = os.open(made.file, os.O_WRONLY | flags)
    os.write(fd, data)
    os.close(fd)


def read(made: RecordFile) -> list[Record]:
    """Read all that is there by now."""
    found = made.new()
    while made.more:
        found += made.new()
    return found


def read_out(made: RecordFile) -> list[Record]:
    return read(made) + made.rest()


def test_records_are_given_once_and_when_their_line_is_whole(made: RecordFile) -> None:
    assert made.new() == []
    line = encode(TWO)
    write(made, encode(ONE) + line[:10])
    assert made.new() == [ONE]
    assert made.new() == []
    write(made, line[10:-1])
    assert made.new() == []
    write(made, line[-1:])
    assert made.new() == [TWO]
    assert made.rest() == []


def test_the_last_line_needs_no_end_once_all_is_over(made: RecordFile) -> None:
    write(made, encode(ONE) + encode(TWO)[:-1])
    assert made.new() == [ONE]
    assert made.rest() == [TWO]
    assert made.rest() == []
    assert (made.records, made.nonsense) == (2, 0)


def test_nonsense_is_counted_and_stands_in_nobodys_way(made: RecordFile) -> None:
    write(made, b"\n \nhello\n\xff\x00\x1b\n" + encode(ONE) + b"{}\n" + encode(TWO) + b"the end")
    assert read_out(made) == [ONE, TWO]
    assert (made.records, made.nonsense) == (2, 4)


def test_a_line_that_is_too_long_is_one_line_of_nonsense(made: RecordFile) -> None:
    write(made, b"x" * (5 * LONGEST_LINE))
    assert made.new() == []
    write(made, b"y" * (20 * LONGEST_LINE))
    assert made.new() == []
    write(made, b"z\n" + encode(ONE) + b"x" * (LONGEST_LINE + 1) + b"\n" + encode(TWO))
    assert read_out(made) == [ONE, TWO]
    assert made.nonsense == 2


def test_a_file_that_is_emptied_is_read_from_its_start(made: RecordFile) -> None:
    write(made, encode(ONE) * 3 + b'{"record": ')
    assert made.new() == [ONE] * 3
    write(made, encode(TWO), os.O_TRUNC)
    assert made.new() == [TWO]


def test_a_hole_takes_no_memory_and_no_time(made: RecordFile) -> None:
    with made.file.open("r+b") as file:
        file.seek(1 << 40)
        file.write(b"\n" + encode(ONE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(made) == []
    assert made.overflowed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB
    assert made.file.stat().st_size == 0


def test_beyond_the_most_the_file_is_emptied_at_each_look(made: RecordFile) -> None:
    line = encode(MetricTold(at=1, name="n", value="x" * 400))
    write(made, line * (MOST_READ // len(line)))
    found = made.new()
    assert made.more, "it takes several looks"
    found += read(made)
    assert len(found) == MOST_READ // len(line)
    overflowed = [made.overflowed]
    write(made, line * 10)
    read(made)
    overflowed.append(made.overflowed)
    assert overflowed == [False, True]
    assert made.file.stat().st_size == 0
    write(made, line * 10)
    assert read_out(made) == []
    assert made.file.stat().st_size == 0
    assert made.records == len(found)


def test_a_file_that_is_read_slowly_does_not_grow(made: RecordFile) -> None:
    for _ in range(3):
        write(made, b"x" * MOST_READ + b"\n")
        made.new()
        assert made.file.stat().st_size <= MOST_READ
    assert made.overflowed
    assert made.more
    assert read(made) == []
    assert made.file.stat().st_size == 0


def replace_by_nothing(path: Path) -> None:
    path.unlink()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "replace", [replace_by_nothing, replace_by_fifo, replace_by_folder, replace_by_link]
)
def test_what_is_put_in_its_place_is_not_read(made: RecordFile, replace: object) -> None:
    assert callable(replace)
    write(made, encode(ONE))
    replace(made.file)
    assert made.new() == [ONE]
    assert made.rest() == []
    assert not made.is_untouched
    made.remove()
    assert Path("/dev/zero").exists()
    assert not made.file.is_symlink()


def touch_by_writing(path: Path) -> None:
    path.write_bytes(b"\n")


def touch_by_chmod(path: Path) -> None:
    path.chmod(0o400)


def touch_by_link(path: Path) -> None:
    path.with_name("link").hardlink_to(path)


def touch_by_rename(path: Path) -> None:
    path.rename(path.with_name("other"))


def touch_by_another(path: Path) -> None:
    path.unlink()
    path.touch(0o600)


@pytest.mark.parametrize(
    "touch",
    [touch_by_writing, touch_by_chmod, touch_by_link, touch_by_rename, touch_by_another],
)
def test_a_touched_file_is_not_as_good_as_new(made: RecordFile, touch: object) -> None:
    assert callable(touch)
    made.new()
    assert made.is_untouched
    touch(made.file)
    assert not made.is_untouched


def test_a_file_that_was_emptied_after_it_was_read_is_not_as_good_as_new(made: RecordFile) -> None:
    write(made, encode(ONE))
    made.new()
    os.truncate(made.file, 0)
    assert not made.is_untouched


def test_only_its_owner_reads_it_and_root_lets_others_write(made: RecordFile) -> None:
    mode = stat.S_IMODE(made.file.stat().st_mode)
    assert mode == (0o622 if os.geteuid() == 0 else 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_for_an_ordinary_user_it_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    assert record_file._mode() == 0o600


def test_it_is_never_made_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(FileExistsError):
            RecordFile(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_ten_processes_that_append_at_once_lose_nothing(made: RecordFile) -> None:
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        'line = b\'{"record": "metric", "at": 1, "name": "%s", "value": 1}\\n\'\n'
        "for _ in range(200): os.write(fd, line % sys.argv[2].encode())\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(made.file), f"n{n}"]) for n in range(10)
    ]
    found: list[Record] = []
    while any(writer.poll() is None for writer in writers):
        found += made.new()
    found += read_out(made)
    assert [writer.returncode for writer in writers] == [0] * 10
    names = [record.name for record in found if isinstance(record, MetricTold)]
    assert {name: names.count(name) for name in names} == {f"n{n}": 200 for n in range(10)}


@hypothesis.settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([encode(ONE), encode(TWO), b"no\n", b"\n", b"x" * 20_000 + b"\n"])),
    st.lists(st.integers(1, 90_000), max_size=5),
)
def test_it_does_not_matter_how_the_bytes_come(lines: list[bytes], cuts: list[int]) -> None:
    expected = [{encode(ONE): ONE, encode(TWO): TWO}.get(line) for line in lines]
    data = b"".join(lines)
    file = RecordFile(Path(os.environ.get("TMPDIR", "/tmp")) / f"records-{os.urandom(8).hex()}")
    try:
        found: list[Record] = []
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            write(file, data[start:end])
            found += file.new()
        found += read(file)
        assert found == [record for record in expected if record is not None]
        assert file.nonsense == sum(line in {b"no\n", b"x" * 20_000 + b"\n"} for line in lines)
    finally:
        file.remove()
    assert not file.file.exists()
