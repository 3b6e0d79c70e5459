# SPDX-License-Identifier: Apache-2.0
"""Web pages cannot reach the control routes, neither those of the API's port nor those of the bucket's."""

from __future__ import annotations

import pytest
import requests

from wan_sandbox.server import Sandbox


@pytest.fixture(params=["url", "bucket_url"])
def address(request: pytest.FixtureRequest, sandbox: Sandbox) -> str:
    found: str = getattr(sandbox, request.param)
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example.com"},
        {"Host": "rebound.example.com:8787"},
        {"Host": "127.0.0.1.example.com"},
        {"Host": "[broken"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_calls_of_a_web_page_are_refused(address: str, method: str, headers: dict[str, str]) -> None:
    for path in ("faults", "reset", "health"):
        answer = requests.request(method, f"{address}/_sandbox/{path}", headers=headers, timeout=20)
        assert answer.status_code in {400, 403}  # aiohttp itself answers 400 to a Host that it cannot read
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_encoded_control_path_is_guarded(address: str) -> None:
    url = f"{address}/%5fsandbox/reset"
    assert requests.post(url, headers={"Origin": "null"}, timeout=20).status_code == 403


def test_programs_and_pages_of_the_sandbox_are_served(address: str) -> None:
    port = address.rpartition(":")[2]
    for headers in ({}, {"Origin": address}, {"Host": f"localhost:{port}"}, {"Host": f"[::1]:{port}"}):
        answer = requests.get(f"{address}/_sandbox/health", headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["ok"]) == (200, True)


def test_option_allows_other_host_names() -> None:
    with Sandbox(control_hosts=("sandbox.internal",), video_bytes=50_000) as sandbox:
        for url in (sandbox.url, sandbox.bucket_url):
            headers = {"Host": "Sandbox.Internal:8787"}
            assert requests.get(f"{url}/_sandbox/health", headers=headers, timeout=20).status_code == 200


def test_model_api_accepts_any_host(sandbox: Sandbox) -> None:
    headers = {"Host": "model-api.example.com", "Authorization": f"Bearer {sandbox.token}"}
    assert requests.get(f"{sandbox.url}/v1/models", headers=headers, timeout=20).status_code == 200
