# SPDX-License-Identifier: Apache-2.0
"""Bad videos in a batch: their outcome, what a rerun does, and the cost of a usable video."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from google.cloud import storage

from airflow_provider_wan.batch.budget import BudgetLimits
from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.exceptions import WanBatchError
from airflow_provider_wan.landing.checks import VideoChecks
from tests.batch.batch_support import (
    addresses,
    bad_first_take,
    batch,
    connection,
    manifest,
    outcomes,
    purchases_per_image,
    run,
    videos,
)
from tests.batch_runs import TaskInstance, operator, play, run_try
from tests.landing.landing_support import FileServer, Serving
from tests.landing.made_videos import made
from wan_sandbox.server import Sandbox

REJECT, FAIL = VideoChecks(on_bad_video="reject"), VideoChecks(on_bad_video="fail")


@pytest.fixture(autouse=True)
def black(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Gives a black video to one image of each batch."""
    with FileServer(Serving(made("black"))) as server:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, download_hosts=[sandbox.url, server.url]))
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


def test_a_rejected_video_is_accepted_by_a_later_run_that_reports(sandbox: Sandbox, black: FileServer) -> None:
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


# -- rejected videos that are bought again -----------------------------------------------------------------


def bought(sandbox: Sandbox, image: str = addresses(2)[1]) -> list[dict[str, Any]]:
    """Return the inputs of the purchases for an image."""
    return [each["inputs"] for each in sandbox.ledger()["purchases"] if each["img_url"] == image]


@pytest.fixture
def black_once(sandbox: Sandbox, black: FileServer) -> FileServer:
    """Gives a black video to the first take only."""
    sandbox.clear_faults()
    sandbox.add_fault("result", "link", url=f"{black.url}/v.mp4", img_url_contains="00001.jpg", count=1)
    return black


def test_a_rejected_video_is_bought_again_and_takes_the_name_of_the_image(
    sandbox: Sandbox, black_once: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = run(addresses(4), checks=REJECT, rebuy_rejected=2)
    assert report.error is None
    assert outcomes(report) == {"landed": 4}
    line = bad_line(report)
    assert (line["verdict"], line["uri"].rpartition("/")[0]) == ("good", "gs://videos/out")
    (rejected,) = line["takes"]
    assert (rejected["outcome"], rejected["reasons"], rejected["cost_usd"]) == ("rejected", ["black"], 0.2)
    assert "/_rejected/" in rejected["uri"]
    assert rejected["uri"].replace("_rejected/", "") == line["uri"]
    first, second = bought(sandbox)
    assert "seed" not in first
    assert second == {**first, "seed": second["seed"]}
    summary = report.summary
    assert (summary["rejected"], summary["further_takes"], summary["usable"]) == (0, 1, 4)
    assert (summary["bought"], summary["cost_usd"]) == (5, pytest.approx(1.0))
    assert summary["cost_per_usable_usd"] == pytest.approx(0.25)
    assert "(100% of its frames are black). Take 2 of at most 3 follows." in caplog.text
    record = storage.Client().bucket("videos").blob(f"_journal/{line['fingerprint']}.json").download_as_text()
    assert json.loads(record)["variation"] == f"take 2 of {rejected['fingerprint']}"
    assert json.loads(record)["inputs"]["seed"] == second["seed"]


@pytest.mark.parametrize("owner", ["dag/run/task/-1", "dag/other/task/-1"])
@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_rerun_finds_every_take_and_neither_buys_nor_decodes(
    again: int, owner: str, sandbox: Sandbox, black_once: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bad_line(run(addresses(4), checks=REJECT, rebuy_rejected=1))
    monkeypatch.setattr("airflow_provider_wan.landing.inspector.VideoInspector.inspect", None)
    report = run(addresses(4), owner=owner, checks=REJECT, rebuy_rejected=again)
    line = bad_line(report)
    assert line["outcome"] == ("landed" if owner == "dag/run/task/-1" else "reused")
    assert [line[name] for name in ("fingerprint", "uri", "verdict")] == [
        first[name] for name in ("fingerprint", "uri", "verdict")
    ]
    assert [take["request_id"] for take in line["takes"]] == [take["request_id"] for take in first["takes"]]
    assert report.summary["bought"] == (5 if owner == "dag/run/task/-1" else 0)
    assert len(bought(sandbox)) == 2


def test_takes_end_at_their_number_and_each_is_in_quarantine(sandbox: Sandbox, black: FileServer) -> None:
    for rebuys, purchases in ((1, 2), (1, 2), (3, 4), (0, 4)):
        report = run(addresses(4), checks=REJECT, rebuy_rejected=rebuys)
        assert report.error is None
        assert outcomes(report) == {"landed": 3, "rejected": 1}
        assert len(bought(sandbox)) == len(black.heads) == purchases
        line = bad_line(report)
        assert len(line["takes"]) == purchases - 1
        assert line["error"] == "100% of its frames are black"
        assert report.summary["bought"] == purchases + 3
    suffixes = [name.rpartition("-")[2] for name in videos(prefix="out/_rejected/")]
    assert sorted(suffixes)[1:] == ["take2.mp4", "take3.mp4", "take4.mp4"]
    assert len({inputs.get("seed") for inputs in bought(sandbox)}) == 4


def test_the_latest_take_is_accepted_by_a_later_run_that_reports(sandbox: Sandbox) -> None:
    rejected = bad_line(run(addresses(4), checks=REJECT, rebuy_rejected=1))
    report = run(addresses(4))
    line = bad_line(report)
    assert (line["outcome"], line["request_id"]) == ("landed", rejected["request_id"])
    assert line["uri"] == rejected["uri"].replace("_rejected/", "").replace("-take2", "")
    assert outcomes(run(addresses(4), checks=REJECT, rebuy_rejected=3)) == {"landed": 4}
    assert len(bought(sandbox)) == 2


def test_without_room_in_a_limit_the_rejected_take_is_the_result_until_there_is(
    sandbox: Sandbox, black_once: FileServer
) -> None:
    for limits, why in (
        (BudgetLimits(max_requests=4), "max_requests=4 is reached."),
        (BudgetLimits(max_cost_usd=0.9), "max_cost_usd=0.9 would be exceeded"),
    ):
        report = run(addresses(4), checks=REJECT, rebuy_rejected=1, budget=limits, price_usd=0.2)
        assert report.error is None
        assert outcomes(report) == {"landed": 3, "rejected": 1}
        line = bad_line(report)
        assert line["error"].startswith(("100% of its frames are black; it was not bought again: ", "black; "))
        assert why in line["error"]
        assert (line["takes"], line["cost_usd"]) == (None, 0.2)
        assert len(bought(sandbox)) == 1
    report = run(addresses(4), checks=REJECT, rebuy_rejected=1, budget=BudgetLimits(max_requests=5), price_usd=0.2)
    assert outcomes(report) == {"landed": 4}
    assert len(bought(sandbox)) == 2


def test_further_takes_of_mapped_chunks_stay_within_their_shares(sandbox: Sandbox) -> None:
    for index in (0, 1):
        report = run(
            addresses(2, first=2 * index),
            owner=f"dag/run/task/{index}",
            checks=VideoChecks((bad_first_take,), "reject"),
            rebuy_rejected=1,
            budget=BudgetLimits(max_requests=6, index=index, of=2),
        )
        assert report.error is None
        assert outcomes(report) == {"landed": 1, "rejected": 1}
        assert report.summary["bought"] == 3
    assert len(sandbox.ledger()["purchases"]) == 6


def test_a_take_that_fails_ends_as_failed_and_a_rerun_buys_it_again(sandbox: Sandbox, black_once: FileServer) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00001.jpg", skip=1, count=1)
    report = run(addresses(4), checks=REJECT, rebuy_rejected=1)
    line = bad_line(report)
    assert (line["outcome"], len(line["takes"])) == ("failed", 1)
    assert isinstance(report.error, WanBatchError)
    # A run that buys nothing again is content with the rejected take.
    assert bad_line(run(addresses(4), checks=REJECT))["outcome"] == "rejected"
    again = bad_line(run(addresses(4), checks=REJECT, rebuy_rejected=1))
    assert (again["outcome"], again["fingerprint"]) == ("landed", line["fingerprint"])
    assert len(bought(sandbox)) == 3


def test_purchases_of_further_takes_count_after_their_image_has_left_the_dataset(
    sandbox: Sandbox, black: FileServer
) -> None:
    run(addresses(2), checks=REJECT, rebuy_rejected=2)
    for _ in range(2):
        report = run(addresses(1), checks=REJECT, rebuy_rejected=2, budget=BudgetLimits(max_requests=4), price_usd=0.2)
        assert (report.summary["bought"], report.summary["cost_usd"]) == (4, pytest.approx(0.8))


def test_a_dry_run_says_what_is_bought_at_most(sandbox: Sandbox) -> None:
    summary = batch(addresses(4), checks=REJECT, rebuy_rejected=2, price_usd=0.2).dry_run().summary
    assert (summary["to_buy"], summary["cost_usd"]) == (4, pytest.approx(0.8))
    assert (summary["to_buy_at_most"], summary["cost_at_most_usd"]) == (12, pytest.approx(2.4))
    run(addresses(4), checks=REJECT, rebuy_rejected=1)
    summary = batch(addresses(5), checks=REJECT, rebuy_rejected=2, price_usd=0.2).dry_run().summary
    # The fifth image with up to three takes, and the third take of the rejected one.
    assert (summary["to_buy"], summary["to_buy_at_most"]) == (2, 4)


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_operator_buys_again_over_waits_and_a_clear_finds_it(
    deferrable: bool, sandbox: Sandbox, black_once: FileServer
) -> None:
    def set_speed(part: str) -> None:
        """Generations end only while the task waits, so that it defers however slow this machine is."""
        slow = part == "worker" and deferrable
        sandbox.control("speed", {"speed": 1 if slow else 1000, "generation_seconds": 1000})

    ti = TaskInstance()
    given: dict[str, Any] = {"images": addresses(4), "on_bad_video": "reject", "rebuy_rejected": 1}
    waits = []
    for _ in range(2):
        summary, triggers = play(ti, **given, deferrable=deferrable, max_in_flight=2, before=set_speed)
        assert (summary["landed"], summary["further_takes"], summary["bought"]) == (4, 1, 5)
        waits.append(len(triggers))
    assert (waits[0] > 2) == deferrable
    assert waits[1] == 0
    assert ti.xcoms["progress"]["further_takes"] == 1


@pytest.mark.parametrize("given", [{"rebuy_rejected": -1}, {"rebuy_rejected": 1}])
def test_the_operator_refuses_takes_that_it_can_not_buy(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rebuy_rejected must be 0 or more, and needs on_bad_video"):
        operator(**given)


@pytest.mark.parametrize(
    ("model_id", "field", "inputs", "seeds"),
    [
        ("wan-ai/wan-3.0/image-to-video", "image_url", {"seed": 7}, 2),
        ("kling/kling-3.0/pro/image-to-video", "start_image_url", {}, 0),
    ],
)
def test_other_models_are_varied_by_their_seed_if_they_have_one(
    model_id: str, field: str, inputs: dict[str, Any], seeds: int, sandbox: Sandbox, black_once: FileServer
) -> None:
    checks = VideoChecks((bad_first_take,), "reject")
    for _ in range(2):
        report = run(
            addresses(1),
            model_id=model_id,
            inputs={"prompt": "waves", **inputs},
            checks=checks,
            rebuy_rejected=1,
        )
        assert outcomes(report) == {"landed": 1}
    first, second = [each["inputs"] for each in sandbox.ledger()["purchases"]]
    assert len({each["seed"] for each in (first, second) if "seed" in each}) == seeds
    assert {**first, "seed": 0} == {**second, "seed": 0}
