import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_history import history, play, settings

from e2e_runner.errors import UsageError
from e2e_runner.model import ReportFormat, ReportTarget, Result, Status
from e2e_runner.report import make_reporters
from e2e_runner.timings import read_timings


def read(folder: Path, text: str, name: str = "timings.json") -> dict[str, float]:
    file = folder / name
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_timings(file)


def test_a_json_report_gives_the_durations_of_what_was_started(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    target = ReportTarget(format=ReportFormat.JSON, file=report)
    results = [
        Result(path="a.py", status=Status.PASSED, duration=1.5, attempts=1),
        Result(path="b.py", status=Status.FAILED, duration=0.25, attempts=2),
        Result(path="c.py", status=Status.NOT_RUN),
    ]
    reporters = make_reporters(settings(reports=[target]), stream=None, environ={})
    play(history(results), reporters)
    assert read_timings(report) == {"a.py": 1.5, "b.py": 0.25}


def test_a_table_is_read_from_json_and_toml(tmp_path: Path) -> None:
    wanted = {"examples/a.py": 1.5, "b.py": 2.0, "é.py": 0.0}
    assert read(tmp_path, json.dumps(wanted)) == wanted
    toml = '"examples/a.py" = 1.5\n"b.py" = 2\n"é.py" = 0.0\n'
    assert read(tmp_path, toml, "t.toml") == wanted
    assert read(tmp_path, "{}") == {}


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"a.py": 3}',))
    writer.start()
    assert read_timings(pipe) == {"a.py": 3.0}
    writer.join()


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("", "t.json", "is not JSON: line 1: Expecting value"),
        ('{"a.py": 1,}', "t.json", "is not JSON: line 1: "),
        ('{\n"a.py": 1', "t.json", "is not JSON: line 2: "),
        ("a.py = 1", "t.json", "is not JSON: line 1: "),
        ("\udcff\udcfe\udc80", "t.json", "is not JSON: "),
        ("[" * 100_000, "t.json", "is nested too deeply"),
        (f'{{"a": {"1" * 5000}}}', "t.json", "is not JSON: Exceeds the limit"),
        ('["a.py"]', "t.json", "holds a list, not a table of paths and seconds"),
        ("null", "t.json", "holds nothing, not a table"),
        ('{"a.py": "1s"}', "t.json", "'a.py' has a text for seconds"),
        ('{"a.py": true}', "t.json", "'a.py' has a boolean for seconds"),
        ('{"a.py": null}', "t.json", "'a.py' has nothing for seconds"),
        ('{"a\\n.py": -1}', "t.json", "'a\\\\n.py' cannot take -1 seconds"),
        ('{"a.py": NaN}', "t.json", "'a.py' cannot take nan seconds"),
        ('{"a.py": 1e999}', "t.json", "'a.py' cannot take inf seconds"),
        (f'{{"a.py": {"1" * 400}}}', "t.json", "'a.py' cannot take inf seconds"),
        (
            '{"schema": "e2e-run-list/1"}',
            "t.json",
            "its schema is 'e2e-run-list/1', not 'e2e-run/1'",
        ),
        ('{"schema": "e2e-run/1"}', "t.json", 'without a list of "examples"'),
        (
            '{"schema": "e2e-run/1", "examples": [{}]}',
            "t.json",
            "example 1 of the report has no path",
        ),
        (
            '{"schema": "e2e-run/1", "examples": [{"path": "a", "attempts": 1}]}',
            "t.json",
            "'a' has nothing for seconds",
        ),
        ("examples/a.py = 1", "t.toml", "is not TOML: line 1: "),
        ("a.py = 1", "t.toml", "'a' has a table for seconds"),
        ('"a.py" = 2020-01-01', "t.toml", "'a.py' has a date or time for seconds"),
        ("\udcff", "t.toml", "is not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_what_is_no_timings_file_is_told(tmp_path: Path, text: str, name: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text, name)
    message = str(caught.value)
    assert message.startswith(f"--timings {tmp_path / name}: ")
    assert what in message
    assert "To fix this: name a json report" in message


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"t\.json: cannot be read: No such file or directory"):
        read_timings(tmp_path / "t.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_timings(tmp_path)
    with pytest.raises(UsageError, match=r"is larger than 64\.0 MiB"):
        read_timings(Path("/dev/zero"))


@given(st.binary(max_size=40))
def test_whatever_a_file_holds_it_gives_seconds_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("timings")
    for name in ("t.json", "t.toml"):
        (folder / name).write_bytes(data)
        try:
            found = read_timings(folder / name)
        except UsageError:
            continue
        assert all(each >= 0 for each in found.values())
