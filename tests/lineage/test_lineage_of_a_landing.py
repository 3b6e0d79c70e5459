# SPDX-License-Identifier: Apache-2.0
"""Assets, hook lineage and OpenLineage of a landing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_wan.durable.record import LandedVideo, Record, Stage
from airflow_provider_wan.lineage.assets import emit_outlets, extra_of

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

REQUEST = "00000000-0000-4000-8000-000000000001"


def video(number: int = 1) -> LandedVideo:
    return LandedVideo(
        uri=f"gs://videos/{number}.mp4",
        bucket="videos",
        object_name=f"{number}.mp4",
        size_bytes=50_000,
        crc32c="AAAAAA==",
        generation=1,
        content_type="video/mp4",
        request_id=REQUEST,
    )


def record(videos: int = 1) -> Record:
    return Record(
        fingerprint="f" * 64,
        model_id="wan-ai/wan-2-2/image-to-video",
        stage=Stage.LANDED,
        image="https://images.example.com/folder/a.jpg",
        request_id=REQUEST,
        created_at="2026-01-15T00:00:00+00:00",
        finished_at="2026-01-15T00:02:00+00:00",
        cost_usd=0.2,
        videos=tuple(video(number + 1) for number in range(videos)),
    )


class OutletEvents(dict[Any, Any]):
    """``context["outlet_events"]`` as Airflow's own class makes it."""


def outlet_events() -> Any:
    from airflow.sdk.execution_time.context import OutletEventAccessors

    return OutletEventAccessors()


def test_asset_event_describes_the_video() -> None:
    from airflow.sdk import Asset

    asset, events = Asset("gs://videos/daily"), outlet_events()
    emit_outlets(events, [asset], record())
    assert events[asset].extra == {
        "uri": "gs://videos/1.mp4",
        "request_id": REQUEST,
        "model_id": "wan-ai/wan-2-2/image-to-video",
        "cost_usd": 0.2,
        "size_bytes": 50_000,
        "crc32c": "AAAAAA==",
        "image": "https://images.example.com/folder/a.jpg",
    }


def test_asset_event_has_facts_and_verdict_of_a_checked_video() -> None:
    from airflow.sdk import Asset

    verdict = {"status": "bad", "reasons": ["black"], "detail": "all of its frames are black"}
    checked = replace(record(), videos=(replace(video(), facts={"width": 640}, verdict=verdict),))
    asset, events = Asset("gs://videos/daily"), outlet_events()
    emit_outlets(events, [asset], checked)
    extra = events[asset].extra
    assert (extra["facts"], extra["verdict"]) == ({"width": 640}, verdict)


def test_asset_event_lists_several_videos_of_a_request() -> None:
    from airflow.sdk import Asset

    asset, events = Asset("gs://videos/daily"), outlet_events()
    emit_outlets(events, [asset], record(videos=2))
    extra = events[asset].extra
    assert [one["uri"] for one in extra["videos"]] == ["gs://videos/1.mp4", "gs://videos/2.mp4"]


def test_alias_gets_an_event_for_each_video() -> None:
    from airflow.sdk import AssetAlias

    alias, outlets = AssetAlias("daily-videos"), outlet_events()
    emit_outlets(outlets, [alias], record(videos=2))
    events = outlets[alias].asset_alias_events
    assert [event.dest_asset_key.uri for event in events] == ["gs://videos/1.mp4", "gs://videos/2.mp4"]
    assert events[0].extra == extra_of(record(), video())


def test_landing_without_outlets_makes_no_event() -> None:
    events = outlet_events()
    emit_outlets(events, [], record())
    assert len(events) == 0


_LAND = """
import json, os, sys
from airflow.sdk.lineage import HookLineageCollector
import airflow.sdk.lineage as lineage
collector = HookLineageCollector()
lineage.get_hook_lineage_collector = lambda: collector
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
hook = WanHook()
inputs = {"prompt": "a slow wave", "img_url": "https://images.example.com/a.jpg"}
request_id = hook.submit("wan-ai/wan-2-2/image-to-video", inputs).request_id
class TI: dag_id, run_id, task_id, map_index = "d", "r", "land", -1
task = WanToGCSOperator(task_id="land", bucket_name="videos", object_name="a.mp4", request={
    "request_id": request_id, "model_id": "wan-ai/wan-2-2/image-to-video", "image": inputs["img_url"],
    "inputs": inputs, "fingerprint": "f" * 64})
task.execute({"ti": TI(), "outlet_events": {}})
report = collector.collected_assets
from airflow.providers.openlineage.extractors.base import DefaultExtractor
facets = DefaultExtractor(task).extract_on_complete(TI())
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.transport.file import FileConfig, FileTransport
client = OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=sys.argv[1], append=True)))
client.emit(RunEvent(eventTime="2026-01-15T00:00:00Z", eventType=RunState.COMPLETE, producer="https://example.com",
    run=Run(runId="01900000-0000-7000-8000-000000000000", facets=facets.run_facets), job=Job("airflow", "d.land"),
    inputs=facets.inputs, outputs=facets.outputs))
links = {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links}
print("REPORT" + json.dumps({"request_id": request_id, "links": links,
    "inputs": [one.asset.uri for one in report.inputs], "outputs": [one.asset.uri for one in report.outputs]}))
"""


@pytest.fixture
def landing(sandbox: Sandbox, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Land a video in its own process; return the collected assets, and the event in OpenLineage's file."""
    pytest.importorskip("openlineage.client")
    events = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", _LAND, str(events)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout[done.stdout.index("REPORT") + 6 :])
    return report, json.loads(events.read_text())


def test_landing_is_reported_to_hook_lineage_and_openlineage(
    landing: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    report, event = landing
    assert (report["inputs"], report["outputs"]) == (
        ["https://images.example.com/a.jpg"],
        ["gs://videos/a.mp4"],
    )
    assert [(one["namespace"], one["name"]) for one in event["inputs"]] == [("https://images.example.com", "a.jpg")]
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("gs://videos", "a.mp4")
    assert output["outputFacets"]["outputStatistics"]["size"] == 50_000
    facets = event["run"]["facets"]
    assert facets["externalQuery"]["externalQueryId"] == report["request_id"]
    request = facets["wan_request"]
    assert request["request_id"] == report["request_id"]
    assert request["cost_usd"] == pytest.approx(0.2)
    assert request["processing_seconds"] >= 0
    assert request["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    (checked,) = request["videos"]
    assert (checked["uri"], checked["facts"]["codec"]) == ("gs://videos/a.mp4", "h264")
    assert checked["verdict"]["status"] == "good"
    assert report["links"] == {
        "Video": "https://storage.cloud.google.com/videos/a.mp4",
        "Bucket": "https://console.cloud.google.com/storage/browser/videos/",
        "RunComfy generations": "https://www.runcomfy.com/generations",
    }
