# SPDX-License-Identifier: Apache-2.0
"""Assets and lineage of a batch: as small for ten thousand videos as for ten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.batch.results import ImageResult, Outcome, count_outcomes
from airflow_provider_wan.lineage.assets import (
    FEW,
    MAX_PLACES,
    BatchEnd,
    emit_batch_outlets,
    extra_of_batch,
    places_of,
)
from airflow_provider_wan.links.wan import GENERATIONS_URL
from tests.batch_runs import IMAGES, TaskInstance, run_try
from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sandbox(queueing_sandbox: Sandbox) -> Sandbox:
    return queueing_sandbox


def outlet_events() -> Any:
    from airflow.sdk.execution_time.context import OutletEventAccessors

    return OutletEventAccessors()


def ended(landed: int, *, reused: int = 0, failed: int = 0) -> BatchEnd:
    from collections import Counter

    counts = {Outcome.LANDED: landed, Outcome.REUSED: reused, Outcome.FAILED: failed}
    results = [
        ImageResult(
            f"gs://images/{outcome}/{number:05d}.jpg",
            outcome,
            "f" * 64,
            f"request-{number}",
            f"gs://videos/out/{number:05d}.mp4" if outcome.is_there else None,
            20_000 if outcome.is_there else None,
            0.2,
        )
        for outcome, count in counts.items()
        for number in range(count)
    ]
    summary = {
        "total": len(results),
        **count_outcomes(Counter(result.outcome for result in results)),
        "bought": landed + failed,
        "cost_usd": 0.2 * landed,
        "cost_is_exact": True,
        "size_bytes": 20_000 * (landed + reused),
        "duration_s": 60.0,
        "manifest": "gs://videos/out/_journal/_manifests/a.jsonl",
        "journal": "gs://videos/out/_journal",
    }
    return BatchEnd("wan-ai/wan-2-2/image-to-video", "videos", "out/", summary, results)


def test_asset_event_of_ten_thousand_videos_stays_small() -> None:
    end = ended(9_000, reused=900, failed=100)
    extra = extra_of_batch(end)
    assert len(json.dumps(extra)) < 1_000
    assert (extra["uri"], extra["total"], extra["landed"], extra["reused"], extra["failed"]) == (
        "gs://videos/out/",
        10_000,
        9_000,
        900,
        100,
    )
    assert extra["size_bytes"] == 9_900 * 20_000
    assert extra["manifest"] == end.summary["manifest"]
    assert "videos" not in extra


@pytest.mark.parametrize(("landed", "reused", "named"), [(0, 0, 0), (3, 2, 5), (FEW, 0, FEW), (FEW, 1, None)])
def test_few_videos_are_named_one_by_one(landed: int, reused: int, named: int | None) -> None:
    extra = extra_of_batch(ended(landed, reused=reused, failed=1))
    assert len(extra["videos"]) == named if named is not None else "videos" not in extra
    if named:
        assert extra["videos"][0] == {
            "uri": "gs://videos/out/00000.mp4",
            "request_id": "request-0",
            "cost_usd": 0.2,
            "size_bytes": 20_000,
            "image": "gs://images/landed/00000.jpg",
            "verdict": None,
        }


def test_each_outlet_gets_one_event() -> None:
    from airflow.sdk import Asset, AssetAlias

    asset, alias = Asset("gs://videos/daily"), AssetAlias("daily-videos")
    end, events = ended(30), outlet_events()
    emit_batch_outlets(events, [asset, alias], end)
    assert events[asset].extra == extra_of_batch(end)
    (event,) = events[alias].asset_alias_events
    assert event.dest_asset_key.uri.rstrip("/") == "gs://videos/out"
    assert event.extra == extra_of_batch(end)


@pytest.mark.parametrize(
    ("addresses", "places"),
    [
        ([], []),
        (["gs://a/b/1.jpg", "gs://a/b/1.jpg", "row 5"], ["gs://a/b/1.jpg"]),
        ([f"gs://a/b/{n}.jpg" for n in range(FEW)], [f"gs://a/b/{n}.jpg" for n in range(FEW)]),
        ([f"gs://a/{n % 2}/{n}.jpg" for n in range(1000)], ["gs://a/0/", "gs://a/1/"]),
        ([f"https://h.example.com/{n}/1.jpg?x={n}" for n in range(1000)], ["https://h.example.com/"]),
        ([f"gs://a/{n}.jpg" for n in range(1000)], ["gs://a/"]),
    ],
)
def test_many_addresses_are_reported_as_folders_or_hosts(addresses: list[str], places: list[str]) -> None:
    assert places_of(addresses) == places


def test_number_of_reported_places_is_bounded() -> None:
    assert len(places_of(f"https://h{number}.example.com/a.jpg" for number in range(5_000))) == MAX_PLACES


def test_reused_videos_are_no_outputs_of_a_batch() -> None:
    assert ended(2, reused=3).outputs == ["gs://videos/out/00000.mp4", "gs://videos/out/00001.mp4"]
    assert ended(0, reused=3).outputs == []
    assert ended(FEW + 1).outputs == ["gs://videos/out/"]


def test_asset_event_counts_the_whole_batch_over_all_its_waits(sandbox: Sandbox) -> None:
    from airflow.sdk import Asset

    asset, events = Asset("gs://videos/out"), outlet_events()
    first = run_try(TaskInstance(), outlet_events=events, outlets=[asset], max_requests=5)
    assert first.error is not None
    assert events[asset].extra == {}  # it failed: Airflow creates no event, so none is prepared

    second = run_try(TaskInstance(), outlet_events=events, outlets=[asset])

    extra = events[asset].extra
    assert len(second.triggers) >= 1
    assert {name: extra[name] for name in ("total", "landed", "bought", "size_bytes", "cost_usd")} == {
        "total": 12,
        "landed": 12,
        "bought": 12,
        "size_bytes": 12 * 20_000,
        "cost_usd": pytest.approx(2.4),
    }
    assert len(extra["videos"]) == 12
    assert {video["image"] for video in extra["videos"]} == set(IMAGES)
    assert all(video["size_bytes"] == 20_000 and video["request_id"] for video in extra["videos"])


def test_links_of_a_batch_work_while_it_waits(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "invalid", img_url_contains="000.jpg")
    played = run_try(TaskInstance(), max_failures=1)
    assert played.error is None
    assert [links["RunComfy generations"] for links in played.links] == [GENERATIONS_URL] * len(played.tasks)
    assert played.links[-1]["Bucket"] == "https://console.cloud.google.com/storage/browser/videos/out"


_BATCH = """
import json, sys
import airflow.sdk.lineage as lineage
collector = lineage.HookLineageCollector()
lineage.get_hook_lineage_collector = lambda: collector
from tests.batch_runs import IMAGES, TaskInstance, run_try
count = int(sys.argv[2])
images = [f"https://images.example.com/{number % 3}/{number:03d}.jpg" for number in range(count)]
played = run_try(TaskInstance(), images=images, max_in_flight=30, max_failures="10%")
task = played.tasks[-1]
from airflow.providers.openlineage.extractors.base import DefaultExtractor
facets = DefaultExtractor(task).extract_on_complete(None)
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.transport.file import FileConfig, FileTransport
client = OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=sys.argv[1], append=True)))
client.emit(RunEvent(eventTime="2026-01-15T00:00:00Z", eventType=RunState.COMPLETE, producer="https://example.com",
    run=Run(runId="01900000-0000-7000-8000-000000000000", facets=facets.run_facets), job=Job("airflow", "d.batch"),
    inputs=facets.inputs, outputs=facets.outputs))
report = collector.collected_assets
print("REPORT" + json.dumps({"summary": played.summary, "inputs": sorted(one.asset.uri for one in report.inputs),
    "outputs": sorted(one.asset.uri for one in report.outputs)}))
"""


def emitted(path: Path, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a batch in its own process; return the collected assets, and the event in OpenLineage's file."""
    pytest.importorskip("openlineage.client")
    done = subprocess.run(
        [sys.executable, "-c", _BATCH, str(path), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("REPORT") + 6 :]), json.loads(path.read_text())


def test_lineage_of_a_small_batch_names_each_image_and_video(sandbox: Sandbox, tmp_path: Path) -> None:
    report, event = emitted(tmp_path / "events.jsonl", 4)
    assert report["inputs"] == [f"https://images.example.com/{number % 3}/{number:03d}.jpg" for number in (0, 3, 1, 2)]
    assert len(report["outputs"]) == len(event["outputs"]) == 4
    assert {one["outputFacets"]["outputStatistics"]["size"] for one in event["outputs"]} == {20_000}
    assert [one["name"] for one in event["inputs"]] == ["0/000.jpg", "1/001.jpg", "2/002.jpg", "0/003.jpg"]


def test_lineage_of_a_larger_batch_names_folders(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="005.jpg")
    report, event = emitted(tmp_path / "events.jsonl", 30)
    assert [one.rstrip("/") for one in report["inputs"]] == [
        f"https://images.example.com/{number}" for number in range(3)
    ]
    assert [one.rstrip("/") for one in report["outputs"]] == ["gs://videos/out"]
    assert [(one["namespace"], one["name"]) for one in event["inputs"]] == [
        ("https://images.example.com", str(number)) for number in range(3)
    ]
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("gs://videos", "out")
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["size"], statistics["fileCount"]) == (29 * 20_000, 29)
    facet, summary = event["run"]["facets"]["wan_batch"], report["summary"]
    assert facet["total"] == 30
    assert (facet["outcomes"]["landed"], facet["outcomes"]["failed"]) == (29, 1)
    assert facet["cost_usd"] == pytest.approx(29 * 0.2)
    assert facet["processing_seconds"] == summary["duration_s"] > 0
    assert (facet["manifest"], facet["journal"]) == (summary["manifest"], summary["journal"])
