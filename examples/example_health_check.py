# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi", "httpx", "pyjwt", "uvicorn", "websockets"]
#
# [tool.e2e-run]
# ports = [8000]
# timeout = "20s"
# ///
"""Is the service up? Ask ``/health``, and see what a path that does not exist answers."""

import sys

import httpx
from demo_server import ServerError, check, check_status, demo_server


def main() -> None:
    """Run the example."""
    with demo_server() as base_url, httpx.Client(base_url=base_url, trust_env=False) as client:
        response = client.get("/health")
        check_status(response, 200)
        body = response.json()
        check(body["status"] == "ok", f"the service does not call itself healthy: {body}")
        print(f"GET /health: {response.status_code}, status {body['status']!r}.")
        check(body["version"], f"the service does not say which version it is: {body}")
        print(f"It runs version {body['version']}.")

        missing = client.get("/no-such-path")
        check_status(missing, 404)
        print(f"GET /no-such-path: {missing.status_code}, as it should be.")
    print("The health check works.")


if __name__ == "__main__":
    try:
        main()
    except ServerError as error:
        sys.exit(f"error: {error}")
