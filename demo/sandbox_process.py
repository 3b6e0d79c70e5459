# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a separate process, as a user starts it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from demo.airflow_client import wait_until
from demo.processes import OwnProcess, stop_all


class SandboxError(RuntimeError):
    """The sandbox did not start; the message has the end of its output."""


class SandboxProcess:
    """``python -m wan_sandbox`` on free ports.

    :param home: folder for its output; made if missing.
    :param arguments: of its command line, e.g. ``["--speed", "20", "--bucket", "videos"]``.
    """

    def __init__(self, home: Path, arguments: Sequence[str] = ()) -> None:
        self._home = home
        self._arguments = list(arguments)
        self._process: OwnProcess | None = None
        self.url = ""
        self.bucket_url = ""
        self.token = ""
        self.env: dict[str, str] = {}

    def __enter__(self) -> SandboxProcess:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 30) -> None:
        """Start it and wait until it prints its addresses.

        :raises SandboxError: it ended instead.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        state_file = self._home / "sandbox.json"
        state_file.unlink(missing_ok=True)
        ports = ["--port", "0", "--bucket-port", "0", "--state-file", str(state_file)]
        process = self._process = OwnProcess(
            "sandbox",
            [sys.executable, "-m", "wan_sandbox", *ports, *self._arguments],
            env=os.environ,
            log_path=self._home / "sandbox.log",
        )

        def ready() -> bool:
            if not process.alive:
                raise SandboxError(f"the sandbox ended with {process.exit_code}:\n{process.log_end()}")
            return state_file.exists()

        try:
            wait_until(ready, "the sandbox ready", timeout_s=timeout_s, every_s=0.05)
        except BaseException:
            self.stop()
            raise
        state = json.loads(state_file.read_text())
        self.url, self.bucket_url, self.token = state["url"], state["bucket_url"], state["token"]
        self.env = state["env"]

    @property
    def connection_extra(self) -> str:
        """The extra of a connection to this sandbox, as JSON."""
        return json.dumps(json.loads(self.env["AIRFLOW_CONN_WAN_DEFAULT"])["extra"])

    def stop(self) -> None:
        """End it. Idempotent."""
        if self._process is not None:
            stop_all([self._process], grace_s=5)
            self._process = None

    def control(self, path: str, json: Any = None, *, method: str | None = None) -> Any:
        """Call a control route of the API: ``control("account", {"balance_usd": 0})``."""
        return _call(f"{self.url}/_sandbox/{path}", json, method)

    def bucket_control(self, path: str, json: Any = None, *, method: str | None = None) -> Any:
        """Call a control route of the bucket: ``bucket_control("objects?bucket=videos")``."""
        return _call(f"{self.bucket_url}/_sandbox/{path}", json, method)

    def ledger(self) -> dict[str, Any]:
        """Return the ledger: requests, purchases, charges, cancellations and refusals."""
        book: dict[str, Any] = self.control("ledger")
        return book

    def add_fault(self, call: str, fault: str, **rule: Any) -> str:
        """Add a fault rule and return its id."""
        return str(self.control("faults", {"call": call, "fault": fault, **rule})["id"])

    def remove_fault(self, rule_id: str) -> None:
        """Remove a fault rule."""
        self.control(f"faults/{rule_id}", method="DELETE")


def _call(url: str, body: Any, method: str | None) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        reply = session.request(method or ("GET" if body is None else "POST"), url, json=body, timeout=30)
    if not reply.ok:
        raise RuntimeError(f"{url} was answered {reply.status_code}: {reply.text[:500]}")
    return reply.json() if reply.content else None
