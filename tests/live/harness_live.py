# SPDX-License-Identifier: Apache-2.0
"""The interface of a live scenario: Airflow, the sandbox, and its own account and image.

Scenarios share one Airflow and one sandbox, so each uses its own image (faults, purchases and records are
matched by its URL) and, where a queue or a balance matters, its own account.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests

from demo.airflow_client import AirflowApiError, AirflowClient, TaskKey, wait_until
from demo.local_airflow import LocalAirflow
from demo.sandbox_process import SandboxProcess

IMAGES_BUCKET = "live-images"
VIDEOS_BUCKET = "live-videos"
PHOTOS = Path(__file__).resolve().parents[2] / "demo" / "photos"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Live:
    """One real Airflow and one sandbox, shared by all scenarios."""

    airflow: LocalAirflow
    sandbox: SandboxProcess

    @property
    def client(self) -> AirflowClient:
        """Airflow's REST API."""
        return self.airflow.client

    def start(self, dag_id: str, conf: dict[str, Any] | None = None, *, logical_date: str | None = None) -> str:
        """Start a run as soon as the Dag is parsed, and return its id."""
        self.airflow.wait_for_dags(dag_id)
        self.client.unpause(dag_id)
        return self.client.trigger(dag_id, conf, logical_date=logical_date)

    def assert_ends(self, dag_id: str, run_id: str, state: str = "success", *, timeout_s: float = 600) -> None:
        """Wait for a run's end and fail, with the logs of its failed tasks, if it has another state."""
        ended = self.client.wait_run(dag_id, run_id, timeout_s=timeout_s)
        assert ended == state, f"{ended}, not {state}: {self.client.why_failed(dag_id, run_id)}"

    def wait_task(self, task: TaskKey, *states: str, timeout_s: float = 600, **more: Any) -> dict[str, Any]:
        """Wait until a task is in one of the states; see ``AirflowClient.wait_task``."""
        return self.client.wait_task(task, *states, timeout_s=timeout_s, **more)

    def wait_until(self, check: Callable[[], T | None], what: str, *, timeout_s: float = 600) -> T:
        """Return the first true value of ``check``; raise a TimeoutError that names ``what`` if none comes in time."""
        return wait_until(check, what, timeout_s=timeout_s)

    def image(self, name: str = "image", photo: str = "coffee.jpg") -> str:
        """Publish a photograph under an address of its own, and return the address."""
        path = f"{name}-{uuid.uuid4().hex[:8]}{Path(photo).suffix}"
        reply = requests.post(
            f"{self.sandbox.bucket_url}/upload/storage/v1/b/{IMAGES_BUCKET}/o",
            params={"uploadType": "media", "name": path},
            headers={"Content-Type": "image/jpeg" if path.endswith("jpg") else "image/png"},
            data=(PHOTOS / photo).read_bytes(),
            timeout=30,
        )
        reply.raise_for_status()
        return f"{self.sandbox.bucket_url}/{IMAGES_BUCKET}/{path}"

    def account(self, name: str, **limits: Any) -> str:
        """Create an account at the sandbox and a connection for it in Airflow; return the id of the connection.

        :param limits: of the account: ``concurrency``, ``balance_usd``, ``requests_per_second``.
        """
        token, conn_id = f"token-of-{name}-{uuid.uuid4().hex}", f"wan_{name}"
        self.sandbox.control("tokens", {"add": token, "account": name})
        if limits:
            self.sandbox.control("account", {"account": name, **limits})
        self.set_connection(conn_id, token)
        return conn_id

    def set_connection(self, conn_id: str, token: str) -> None:
        """Create the connection to the sandbox with this token, or change its token."""
        body = {
            "connection_id": conn_id,
            "conn_type": "wan",
            "host": self.sandbox.url,
            "password": token,
            "extra": self.sandbox.connection_extra,
        }
        try:
            self.client.api("POST", "/connections", body)
        except AirflowApiError as error:
            if error.status != 409:
                raise
            self.client.api("PATCH", f"/connections/{conn_id}", body)

    def purchases(self, img_url: str) -> list[dict[str, Any]]:
        """What was bought for this image, by the sandbox's ledger."""
        return [one for one in self.sandbox.ledger()["purchases"] if one["img_url"] == img_url]

    def wait_purchase(self, img_url: str, *, timeout_s: float = 600) -> dict[str, Any]:
        """Wait until a request is bought for this image, and return the first one."""
        found = wait_until(lambda: self.purchases(img_url), f"a purchase of {img_url}", timeout_s=timeout_s)
        return found[0]

    def cancels(self, img_url: str) -> list[dict[str, Any]]:
        """Cancels that were asked for requests of this image."""
        ids = {one["request_id"] for one in self.purchases(img_url)}
        return [one for one in self.sandbox.ledger()["cancels"] if one["request_id"] in ids]

    def force(self, request_id: str, state: str) -> None:
        """Force a request into a state: succeeded, failed, cancelled, stuck or vanished."""
        self.sandbox.control(f"requests/{request_id}", {"state": state})

    def videos(self, prefix: str = "") -> list[dict[str, Any]]:
        """Landed videos: ``name, size_bytes, metadata, writes`` (how often the name was ever written)."""
        query = f"objects?bucket={VIDEOS_BUCKET}&prefix={prefix}"
        objects = self.sandbox.bucket_control(query)["objects"]
        return [one for one in objects if one["name"].endswith(".mp4")]
