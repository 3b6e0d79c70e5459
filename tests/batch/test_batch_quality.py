# SPDX-License-Identifier: Apache-2.0
"""Bad videos in a batch: their outcome, what a rerun does, and the cost of a usable video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from airflow_provider_wan.batch.report import MaxFailures
from airflow_provider_wan.exceptions import WanBatchError
from airflow_provider_wan.landing.checks import VideoChecks
from tests.batch.batch_support import (
    addresses,
    connection,
    manifest,
    outcomes,
    purchases_per_image,
    run,
    videos,
)
from tests.batch_runs import TaskInstance, play, run_try
from tests.landing.landing_support import FileServer, Serving
from tests.landing.made_videos import made
from wan_sandbox.server import Sandbox

REJECT, FAIL = VideoChecks(on_bad_video="reject"), VideoChecks(on_bad_video="fail")


@pytest.fixture(autouse=True)
def black(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Gives a black video to one image of each batch."""
    with FileServer(Serving(made("black"))) as server:
        monkeypatch.setenv(
            "AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, download_hosts=[sandbox.url, server.url])
        )
        sandbox.add_fault("result", "link", url=f"{server.url}/v.mp4", img_url_contains="00001.jpg")
        yield server


def bad_line(report: Any) -> dict[str, Any]:
    line: dict[str, Any] = manifest(report)[1]
    return line


def test_a_bad_video_that_is_reported_lands_and_is_not_usable(sandbox: Sandbox, black: FileServer) -> None:
    for _ in range(2):  # a rerun finds it
        report = run(addresses(4))
        assert report.error is None
        assert outcomes(report) == {"landed": 4}
        line = bad_line(report)
        assert (line["verdict"], line["reasons"]) == ("bad", ["black"])
        assert line["uri"].startswith("gs://videos/out/00001-")
        assert manifest(report)[0]["verdict"] == "good"
        summary = report.summary
        assert (summary["bad"], summary["usable"]) == (1, 3)
        assert summary["cost_per_usable_usd"] == pytest.approx(0.8 / 3, abs=0.001)
    assert len(black.heads) == 1


def test_a_rejected_video_lands_in_quarantine_and_a_rerun_neither_buys_nor_decodes_it(
    sandbox: Sandbox, black: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for owner in ("dag/one/task/-1", "dag/one/task/-1", "dag/two/task/-1"):
        report = run(addresses(4), owner=owner, checks=REJECT)
        assert report.error is None
        counted = outcomes(report)
        assert (counted["rejected"], counted.get("landed", 0) + counted.get("reused", 0)) == (1, 3)
        lines.append(bad_line(report))
        monkeypatch.setattr("airflow_provider_wan.landing.inspector.VideoInspector.inspect", None)
    assert {line["uri"].rpartition("/")[0] for line in lines} == {"gs://videos/out/_rejected"}
    assert {line["error"] for line in lines} == {"100% of its frames are black"}
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(4), 1)
    assert len(black.heads) == 1


def test_a_rejected_video_is_no_failure_unless_bad_videos_fail(sandbox: Sandbox) -> None:
    assert run(addresses(4), checks=REJECT).error is None
    report = run(addresses(4), checks=FAIL)
    assert isinstance(report.error, WanBatchError)
    assert not report.error.retry_helps
    assert "1 of 4 images have no video that is good" in str(report.error)
    assert "100% of its frames are black" in str(report.error)
    assert run(addresses(4), checks=FAIL, max_failures=MaxFailures(count=1)).error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(4), 1)


def test_a_rejected_video_is_accepted_by_a_later_run_that_reports(
    sandbox: Sandbox, black: FileServer
) -> None:
    run(addresses(4), checks=REJECT)
    report = run(addresses(4))
    assert outcomes(report) == {"landed": 4}
    assert (bad_line(report)["verdict"], report.summary["bad"]) == ("bad", 1)
    assert bad_line(report)["uri"].startswith("gs://videos/out/00001-")
    assert (len(black.heads), len(videos())) == (1, 5)  # the copy in quarantine stays
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(4), 1)


def test_the_operator_passes_checks_of_the_user_to_the_batch(sandbox: Sandbox) -> None:
    def dull(path: str, facts: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
        return "it is dull" if record["image"].endswith("1.jpg") else None

    ti = TaskInstance()
    played = run_try(ti, images=addresses(3), checks=["short", dull], on_bad_video="fail")
    assert "it is dull" in str(played.error)
    summary = ti.xcoms["summary"]
    assert (summary["rejected"], summary["landed"], summary["usable"]) == (1, 2, 2)
    assert summary["cost_per_usable_usd"] == pytest.approx(0.3)
    summary, _ = play(ti, images=addresses(3), checks=["short", dull], on_bad_video="reject")
    assert summary["rejected"] == 1
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(3), 1)
