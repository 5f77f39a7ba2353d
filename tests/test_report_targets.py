import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_runner.errors import E2ERunError, SetupError, UsageError
from e2e_runner.model import ReportFormat, ReportTarget
from e2e_runner.report.targets import OpenTarget, open_reports


def target(file: Path | str, kind: ReportFormat = ReportFormat.JSON) -> ReportTarget:
    return ReportTarget(format=kind, file=Path(file))


def claim(file: Path | str, kind: ReportFormat = ReportFormat.JSON) -> OpenTarget:
    (opened,) = open_reports([target(file, kind)])
    return opened


def refusal(*targets: ReportTarget) -> E2ERunError:
    with pytest.raises(E2ERunError) as caught:
        open_reports(targets)
    return caught.value


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_missing_folders_are_made_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "report.json"
    with claim(file):
        assert list(file.parent.iterdir()) == []


def test_a_report_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    with claim(file) as opened, file.open() as old:
        opened.replace(["new ", "é"])
        assert old.read() == "old"
    assert file.read_text(encoding="utf-8") == "new é"
    assert names(tmp_path) == ["report.json"]


def test_a_report_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")

    def parts() -> Iterator[str]:
        yield "a"
        raise OSError(28, "No space left on device")

    with claim(file) as opened, pytest.raises(OSError, match="No space left"):
        opened.replace(parts())
    assert file.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_report_follows_a_link_and_the_umask(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "report.json"
    link.symlink_to(tmp_path / "real" / "report.json")
    before = os.umask(0o027)
    try:
        with claim(link) as opened:
            opened.replace(["x"])
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert link.read_text() == "x"
    assert stat.S_IMODE(link.stat().st_mode) == 0o640


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / ("r" * 250 + ".json")
    with claim(file) as opened:
        opened.replace(["x"])
    assert file.read_text() == "x"


def test_a_stream_starts_empty_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("old")
    with claim(file, ReportFormat.JSONL) as opened:
        assert file.read_bytes() == b""
        opened.append(b"one\n")
        opened.append(b"two\n")
        assert file.read_bytes() == b"one\ntwo\n"


def test_a_closed_stream_refuses(tmp_path: Path) -> None:
    opened = claim(tmp_path / "events.jsonl", ReportFormat.JSONL)
    opened.close()
    opened.close()
    with pytest.raises(OSError, match="it is closed"):
        opened.append(b"late")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    error = refusal(target(tmp_path))
    assert isinstance(error, UsageError)
    assert str(error) == (
        f"--report json={tmp_path}: is a folder.\nTo fix this: name a file inside it."
    )


def test_the_same_place_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one = target(tmp_path / "r")
    other = target(tmp_path / "link" / "r", ReportFormat.JUNIT)
    error = refusal(one, other)
    assert isinstance(error, UsageError)
    assert str(error) == (
        f"--report junit={other.file}: --report json={one.file} writes to the same place.\n"
        "To fix this: give each report a path of its own."
    )
    assert isinstance(refusal(target("/dev/stdout"), target("/dev/fd/1")), UsageError)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("/proc/nowhere/report.json", "No such file or directory"),
        ("/dev/null/report.json", "Not a directory"),
        ("/proc/report.json", "No such file or directory"),
        ("/dev/fd/987654", "Bad file descriptor"),
    ],
)
def test_what_the_system_refuses_is_said_before_the_run(file: str, why: str) -> None:
    error = refusal(target(file))
    assert isinstance(error, SetupError)
    assert error.message == f"--report json={file}: cannot be written: {why}."
    assert error.remedy


def test_a_nul_in_a_path_is_refused() -> None:
    assert isinstance(refusal(target("/tmp/a\0b")), UsageError)


def test_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    error = refusal(target(pipe))
    assert error.message == (
        f"--report json={pipe}: cannot be written: "
        "no process reads this pipe, or no device is behind it."
    )


def test_a_pipe_with_a_reader_is_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with claim(pipe) as opened:
            opened.replace(["{}", "\n"])
        assert os.read(reader, 100) == b"{}\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_stdout_is_shared_and_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "out"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"console\n")
        with claim(f"/dev/fd/{descriptor}") as opened:
            opened.replace(["report\n"])
        os.write(descriptor, b"console\n")
    finally:
        os.close(descriptor)
    assert file.read_text() == "console\nreport\nconsole\n"


def test_a_full_disk_refuses(tmp_path: Path) -> None:
    with claim("/dev/full") as opened, pytest.raises(OSError, match="No space left"):
        opened.replace(["x"])
    assert names(tmp_path) == []


def test_a_refusal_closes_what_was_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    refusal(target(tmp_path / "events", ReportFormat.JSONL), target(tmp_path))
    assert len(names(Path("/proc/self/fd"))) == before
