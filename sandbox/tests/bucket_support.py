# SPDX-License-Identifier: Apache-2.0
"""A bucket server in a background thread, and the real client that talks to it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import requests
from aiohttp import web
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from wan_sandbox.bucket.app import bucket_app
from wan_sandbox.control.faults import FaultBook

QUICK_RETRY: Retry = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(20)
BUCKET = "videos"
MIB = 1024 * 1024


class BucketServer:
    """Serves one emulator on a free loopback port while the ``with`` block runs."""

    def __init__(self, **options: Any) -> None:
        self._options = {"buckets": [BUCKET], **options}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.faults = FaultBook()
        self.url = ""

    def __enter__(self) -> BucketServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> None:
        app = bucket_app(self.faults, **self._options)
        self._runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    def client(self) -> storage.Client:
        before = os.environ.get("STORAGE_EMULATOR_HOST")
        os.environ["STORAGE_EMULATOR_HOST"] = self.url
        try:
            return storage.Client(project="sandbox", credentials=AnonymousCredentials())
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]
            if before is not None:
                os.environ["STORAGE_EMULATOR_HOST"] = before

    def bucket(self, name: str = BUCKET) -> storage.Bucket:
        return self.client().bucket(name)

    def fault(self, call: str, fault: str, **rule: Any) -> None:
        self.control("POST", "faults", {"call": call, "fault": fault, **rule})

    def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def calls(self) -> Any:
        return self.control("GET", "calls")

    def names(self) -> list[str]:
        return [entry["name"] for entry in self.control("GET", f"objects?bucket={BUCKET}")["objects"]]

    def reset(self) -> None:
        self.control("POST", "reset")
        self.control("DELETE", "faults")
        self.control("POST", "shape", {"latency_s": 0, "bytes_per_s": 0, "write_interval_s": 0})


def bytes_of(size: int) -> bytes:
    """Return bytes of which no two blocks are equal, so that a wrong order is detected."""
    return b"".join(number.to_bytes(8, "big") for number in range((size + 7) // 8))[:size]
