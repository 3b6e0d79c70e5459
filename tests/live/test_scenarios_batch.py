# SPDX-License-Identifier: Apache-2.0
"""A batch that dies or is taken away: each image is bought once, and what was bought lands."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import QUICK_S, Case, need_on_kill

BATCH = "scenario_batch"
COUNT = 5


def started(case: Case, images: list[str], **conf: object) -> str:
    return case.start(BATCH, images=case.manifest(images), **conf)


@scenario
def test_a_batch_killed_between_a_post_and_its_id_leaves_one_unknown_and_a_person_names_it(
    live: Live,
) -> None:
    case = Case(live, "batch-killed-between-post-and-id", account=True)
    images = case.more_images(COUNT - 1)
    lost = images[2]
    case.api_fault("submit", "hang_after", img_url=lost, count=1)
    run_id = started(case, images)
    case.request_ids(COUNT)
    case.give_up_on_answers_after(QUICK_S)
    batch = case.task(BATCH, run_id, "batch")

    case.kill(batch)

    case.ends(BATCH, run_id, "failed")
    case.recovered()
    summary = live.client.xcom(batch, "summary")
    assert (summary["unknown"], summary["landed"]) == (1, COUNT - 1)
    case.judge(bought=COUNT, landed=COUNT - 1)

    case.settling()
    [request_id] = [one["request_id"] for one in case.purchases() if one["img_url"] == lost]
    run_id = started(case, images, resolve={lost: request_id})
    case.finish(BATCH, run_id)
    case.judge(bought=COUNT, landed=COUNT)


@scenario
def test_a_batch_killed_while_it_lands_buys_nothing_twice_and_lands_everything_once(live: Live) -> None:
    case = Case(live, "batch-killed-while-landing")
    images = case.more_images(COUNT - 1)
    downloading = case.api_fault("media", "stall", img_url=images[1], count=1)
    run_id = started(case, images)
    case.wait_hit(downloading)

    case.kill(case.task(BATCH, run_id, "batch"))

    case.finish(BATCH, run_id)
    case.judge(bought=COUNT, landed=COUNT)


@scenario
def test_a_batch_marked_failed_cancels_what_is_queued_and_leaves_what_runs(live: Live) -> None:
    need_on_kill()
    case = Case(live, "batch-marked-failed", account=True)
    live.sandbox.control("account", {"account": case.name, "concurrency": 2})
    images = case.more_images(COUNT - 1)
    for image in images:
        case.api_fault("generation", "stuck_running", img_url=image)
    run_id = started(case, images)
    batch = case.task(BATCH, run_id, "batch")
    case.wait_task(batch, "deferred")
    # Airflow tells only a trigger that runs; the looks of the worker say nothing about that.
    case.wait_log(batch, ") starting")

    live.client.set_state(batch, "failed")
    case.harmed()

    case.wait_log(batch, f"{COUNT - 2} of {COUNT} requests were still queued")
    case.recovered()
    case.judge(bought=COUNT, cancelled=COUNT - 2, landed=0)
