# SPDX-License-Identifier: Apache-2.0
"""The example DAG that cancels requests that are no longer needed, run by Airflow against the sandbox."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wan_sandbox.server import Sandbox

if TYPE_CHECKING:
    from airflow.sdk.definitions.dag import DAG

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTO = ROOT / "demo" / "photos" / "coffee.jpg"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(speed=100, concurrency=1, video_bytes=50_000, buckets=("photos", "videos")) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def image_url(sandbox: Sandbox) -> str:
    from google.cloud import storage

    storage.Client().bucket("photos").blob(PHOTO.name).upload_from_filename(str(PHOTO))
    return f"{sandbox.bucket_url}/photos/{PHOTO.name}"


@pytest.fixture
def dag(airflow_db: Path, monkeypatch: pytest.MonkeyPatch) -> DAG:
    monkeypatch.syspath_prepend(ROOT / "dags")
    sys.modules.pop("wan_cancel_unwanted", None)
    import wan_cancel_unwanted

    return wan_cancel_unwanted.dag


def run(dag: DAG, image_url: str) -> tuple[dict[str, str], Any]:
    """Run it; return the state of each task, and the teardown's return value."""
    result = dag.test(run_conf={"img_url": image_url, "prompt": "steam rises", "bucket": "videos"})
    tasks = {ti.task_id: ti for ti in result.get_task_instances()}
    taken_back = tasks["cancel"].xcom_pull(task_ids="cancel")
    return {name: str(ti.state) for name, ti in tasks.items()}, taken_back


def test_finished_request_is_not_cancelled(dag: DAG, sandbox: Sandbox, image_url: str) -> None:
    states, taken_back = run(dag, image_url)
    assert states == dict.fromkeys(("submit", "wait", "land", "cancel"), "success")
    assert taken_back["cancelled"] is False
    assert len(sandbox.ledger()["purchases"]) == 1


def test_queued_request_is_cancelled_when_its_run_fails(
    dag: DAG, sandbox: Sandbox, image_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    connection["extra"]["not_found_patience"] = 0.1
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(connection))
    sandbox.add_fault("generation", "stuck_queue")
    sandbox.add_fault("status", "not_found")

    states, taken_back = run(dag, image_url)
    assert states["wait"] == "failed"
    assert states["land"] == "upstream_failed"
    assert states["cancel"] == "success"
    assert taken_back["cancelled"] is True
