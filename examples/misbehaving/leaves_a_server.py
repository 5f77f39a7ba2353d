# /// script
# requires-python = ">=3.11"
# dependencies = ["e2e-runner", "httpx"]
#
# [tool.e2e-run]
# databases = []
# ports = [8000]
# timeout = "20s"
# ///
"""Publish a report by a web server in the background, and exit without stopping that."""

import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from e2e_runner.kit import check, section, step, success, wait_until

URL = "http://127.0.0.1:8000/report.txt"


def main() -> None:
    """Run the example."""
    section("Publish the report of the day")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.txt").write_text("5 orders, 3 filled\n", encoding="utf-8")
        with step("start the web server"):
            subprocess.Popen(
                [sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        with step("fetch the report"):
            report = wait_until(lambda: httpx.get(URL, trust_env=False).text, what="the report")
            check(report, "5 orders, 3 filled\n")
    success("The report can be read")


if __name__ == "__main__":
    main()
