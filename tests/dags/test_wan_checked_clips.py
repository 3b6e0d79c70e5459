# SPDX-License-Identifier: Apache-2.0
"""The example Dag with checks and a table of all clips, run by Airflow against the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dag_runs import run_example
from tests.landing.landing_support import FileServer, Serving
from tests.landing.made_videos import made
from tests.sandboxes import Bucket
from tests.task_runs import connect

PHOTOS = Path(__file__).resolve().parent.parent.parent / "demo" / "photos"

pytestmark = pytest.mark.usefixtures("airflow_db")


def test_a_rejected_clip_gets_another_take_and_the_table_has_both(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    bucket.put("photos/coffee.jpg", (PHOTOS / "coffee.jpg").read_bytes(), "image/jpeg")
    with FileServer(Serving(made("black"))) as server:
        connect(monkeypatch, bucket.sandbox, download_hosts=[server.url, bucket.sandbox.url])
        bucket.sandbox.add_fault("result", "link", url=f"{server.url}/v.mp4")
        run = run_example("wan_checked_clips", {"images": "gs://videos/photos/", "bucket": "videos"})
    assert run.states() == {"generate": "success", "export": "success"}
    for folder in ("tables/clips/dt=", "tables/clips/runs/dt="):
        [table] = bucket.objects(folder)
        rows = [json.loads(line) for line in bucket.read(table).decode().splitlines()]
        assert [row["reasons"] for row in rows] == [["black"], ["black"]]
        assert {row["rejected"] for row in rows} == {True}
    assert len(bucket.sandbox.ledger()["purchases"]) == 2
