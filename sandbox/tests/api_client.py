# SPDX-License-Identifier: Apache-2.0
"""A minimal client of the Model API, and helpers to put images where the sandbox can fetch them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from wan_sandbox.server import Sandbox

PHOTOS = Path(__file__).resolve().parents[2] / "demo" / "photos"
MODEL = "wan-ai/wan-2-2/image-to-video"


class Client:
    """Makes the calls of the contract, and asserts nothing."""

    def __init__(self, sandbox: Sandbox, token: str = "sandbox-token") -> None:
        self.sandbox = sandbox
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **query: Any) -> requests.Response:
        return self.session.get(self.sandbox.url + path, params=query, timeout=10, allow_redirects=False)

    def post(self, path: str, body: Any = None, timeout: float = 10) -> requests.Response:
        return self.session.post(self.sandbox.url + path, json=body, timeout=timeout, allow_redirects=False)

    def submit(self, model: str = MODEL, timeout: float = 10, **inputs: Any) -> requests.Response:
        body = {"prompt": "a slow wave", "img_url": "https://images.example.com/a.jpg", **inputs}
        return self.post(f"/v1/models/{model}", body, timeout)

    def buy(self, **inputs: Any) -> str:
        answer = self.submit(**inputs)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    def status(self, request_id: str) -> requests.Response:
        return self.get(f"/v1/requests/{request_id}/status")

    def word(self, request_id: str) -> str:
        return str(self.status(request_id).json()["status"])

    def result(self, request_id: str, **query: Any) -> requests.Response:
        return self.get(f"/v1/requests/{request_id}/result", **query)

    def cancel(self, request_id: str) -> requests.Response:
        return self.post(f"/v1/requests/{request_id}/cancel")

    def finish(self, request_id: str, state: str = "succeeded", **more: Any) -> None:
        self.sandbox.control(f"requests/{request_id}", {"state": state, **more})

    def done(self, **inputs: Any) -> str:
        """Submit a request and complete it at once."""
        request_id = self.buy(**inputs)
        self.finish(request_id)
        return request_id

    def done_by_rules(self, **inputs: Any) -> str:
        """Submit a request that ends at once as the fault rules say."""
        self.sandbox.control("speed", {"generation_seconds": 0})
        return self.buy(**inputs)

    def link(self, request_id: str) -> str:
        return str(self.result(request_id).json()["output"]["video"])


def download(url: str, **headers: str) -> requests.Response:
    """Fetch a public link: no token, no redirect, no proxy."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=10, allow_redirects=False)


def put_image(sandbox: Sandbox, name: str, data: bytes) -> str:
    """Publish a file in the sandbox's bucket."""
    sandbox.bucket_control("buckets", {"name": "pictures"})
    url = f"{sandbox.bucket_url}/upload/storage/v1/b/pictures/o?uploadType=media&name={name}"
    requests.post(url, data=data, timeout=10).raise_for_status()
    return f"{sandbox.bucket_url}/pictures/{name}"


def image_bytes(width: int = 400, height: int = 400, mode: str = "RGB", format: str = "PNG", colour: Any = 90) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, format)
    return file.getvalue()


def eventually(condition: Callable[[], Any], timeout_s: float = 120) -> Any:
    """Poll until a condition is true, and return its value."""
    ends = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < ends, "the condition never became true"
        time.sleep(0.01)
    return found
