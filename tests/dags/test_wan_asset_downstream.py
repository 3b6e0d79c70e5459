# SPDX-License-Identifier: Apache-2.0
"""The example DAGs around an asset, run by Airflow against the sandbox."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTO = ROOT / "demo" / "photos" / "coffee.jpg"


def test_landing_creates_an_asset_event_that_describes_the_video(
    airflow_db: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from google.cloud import storage

    storage.Client().bucket("images").blob(PHOTO.name).upload_from_filename(str(PHOTO))
    monkeypatch.syspath_prepend(ROOT / "dags")
    sys.modules.pop("wan_asset_downstream", None)
    import wan_asset_downstream

    conf = {"img_url": f"{sandbox.bucket_url}/images/{PHOTO.name}", "bucket": "videos"}
    run = wan_asset_downstream.producer.test(run_conf=conf)

    assert {str(ti.state) for ti in run.get_task_instances()} == {"success"}
    with create_session() as session:
        events = [event.extra for event in session.query(AssetEvent).all()]
    (purchase,) = sandbox.ledger()["purchases"]
    (event,) = [extra for extra in events if extra.get("request_id") == purchase["request_id"]]
    assert event["uri"] == f"gs://videos/campaign/{purchase['request_id']}.mp4"
    assert event["model_id"] == "wan-ai/wan-2-2/image-to-video"
    assert event["cost_usd"] == pytest.approx(0.2)
    assert event["size_bytes"] > 0
    assert event["crc32c"]
    assert storage.Client().bucket("videos").blob("campaign/index.html").exists()


def test_the_downstream_dag_is_scheduled_by_the_asset() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("downstream", ROOT / "dags" / "wan_asset_downstream.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (outlet,) = module.producer.get_task("land").outlets
    assert outlet == module.VIDEOS
    assert list(module.downstream.timetable.asset_condition.objects) == [module.VIDEOS]
