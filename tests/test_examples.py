import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PORT = 8000

pytestmark = pytest.mark.usefixtures("demo_port")


def run_by_hand(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name],
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def somebody_listens() -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", PORT)) == 0


@pytest.mark.parametrize(
    ("name", "output"),
    [
        (
            "example_health_check.py",
            (
                "The demo service is ready at http://127.0.0.1:8000.\n"
                "GET /health: 200, status 'ok'.\n"
                "It runs version 1.0.0.\n"
                "GET /no-such-path: 404, as it should be.\n"
                "The health check works.\n"
            ),
        ),
        (
            "example_jwt_login.py",
            (
                "The demo service is ready at http://127.0.0.1:8000.\n"
                "A wrong password: 401, 'Wrong username or password'.\n"
                "The right one: a token that is valid for 900 seconds.\n"
                "GET /api/v1/users/me: {'id': 1, 'username': 'trader'}.\n"
                "Without the token: 401.\n"
                "A forged token: 401, 'Invalid token: Signature verification failed'.\n"
                "Login by token works.\n"
            ),
        ),
        (
            "example_websocket_ticker.py",
            (
                "The demo service is ready at http://127.0.0.1:8000.\n"
                "An unknown symbol is refused: TULIPS is none of BTC-USD, ETH-USD, EUR-USD.\n"
                "5 ticks of BTC-USD in order: 64250.00, 64250.02, 64250.07, 64250.09, 64250.08.\n"
                "A heartbeat arrived among them or after.\n"
                "A second subscription starts from the first tick and sees the same prices.\n"
                "The ticker works.\n"
            ),
        ),
    ],
)
def test_example_passes_by_hand_from_any_folder(name: str, output: str, tmp_path: Path) -> None:
    done = run_by_hand(name, tmp_path)

    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)
    assert not somebody_listens()


@pytest.mark.parametrize(
    "name", ["example_health_check.py", "example_jwt_login.py", "example_websocket_ticker.py"]
)
def test_example_fails_at_once_when_the_port_is_taken(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", PORT)):
        done = run_by_hand(name, tmp_path)

    assert (done.stdout, done.stderr, done.returncode) == (
        "",
        "error: 127.0.0.1:8000: address already in use. Stop what listens there, then try again.\n",
        1,
    )


def test_example_shows_the_log_of_a_service_that_dies_early(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "example_health_check.py"],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "DEMO_JWT_SECRET": "short"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("error: The demo service exited with code 1.\nIts log:\n")
    assert done.stderr.endswith("ValueError: DEMO_JWT_SECRET: needs 32 bytes or more\n")


def test_example_stops_its_service_when_it_is_terminated(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", EXAMPLES / "example_websocket_ticker.py"],
        cwd=tmp_path,
        env={**os.environ, "DEMO_TICK_SECONDS": "3600"},
        stdout=subprocess.PIPE,
        text=True,
    ) as example:
        assert example.stdout is not None
        first = example.stdout.readline()
        example.send_signal(signal.SIGTERM)
        code = example.wait(30)

    assert (first, code) == ("The demo service is ready at http://127.0.0.1:8000.\n", 143)
    assert not somebody_listens()


def test_example_does_not_take_a_stranger_for_its_service(tmp_path: Path) -> None:
    # Both see the port free; the one whose service binds second must fail, and say why.
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(run_by_hand, ["example_health_check.py"] * 2, [tmp_path] * 2))

    assert 0 in {done.returncode for done in both}
    for done in both:
        if done.returncode == 0:
            assert (done.stdout.splitlines()[-1], done.stderr) == ("The health check works.", "")
        else:
            assert done.returncode == 1
            assert "The demo service is ready" not in done.stdout
            # With a small letter where bind(2) fails, with a capital where only listen(2) does.
            assert "address already in use" in done.stderr.lower()
    assert not somebody_listens()
