# SPDX-License-Identifier: Apache-2.0
"""A batch of two hundred images and a single request, whose workers and triggerers are killed repeatedly."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

from demo.airflow_client import TaskKey
from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_batches import outcomes_of
from tests.live.scenario_case import Case
from tests.live.scenario_waits import goes_on, waiting_in_a_triggerer

BATCH = "scenario_batch_crowd"
COUNT, KILLS = 200, 3
SLOW, FAST = 4, 100
"""Generations at a time: so few while it is mark_failure that it is not over before the last kill."""
ANSWER_S = 4
"""The connection's ``timeout``, after which a claim of a dead process is old."""


@scenario(alone=True)
def test_two_hundred_images_are_bought_once_whatever_process_dies(live: Live) -> None:
    threading.Thread(target=start_spares, args=(live,), daemon=True).start()
    single = Case(live, "triggerer-killed", journal=True)
    make, _, request_id = waiting_in_a_triggerer(single)
    case = Case(live, "batch-crowd", account=True)
    case.give_up_on_answers_after(ANSWER_S)
    live.sandbox.control("account", {"account": case.name, "concurrency": SLOW})
    manifest = case.manifest(case.more_images(COUNT - 1))
    for call in ("status", "result", "media"):
        case.api_fault(call, "status", img_url=case.name, status=503, rate=0.1)
    run_id = case.start(BATCH, images=manifest)
    batch = case.task(BATCH, run_id, "batch")

    moments = random.Random(7)
    kill_worker(case, batch, moments.random() * 2.5)
    kill_triggerers(case, moments.random() * 3, batch, make)
    single.mark_failure()
    live.airflow.triggerer_of(make, timeout_s=60)  # one that lives
    single.recovered()
    for _ in range(KILLS - 1):
        kill_worker(case, batch, moments.random() * 2.5)
        kill_triggerers(case, moments.random() * 3, batch)
    live.sandbox.control("account", {"account": case.name, "concurrency": FAST})
    case.finish(BATCH, run_id)
    goes_on(single, make, request_id)

    bought = Counter(one["img_url"] for one in case.purchases())
    ended = outcomes_of(case, batch)
    assert max(bought.values()) == 1
    # A kill between a POST and its answer leaves a claim that only a person can settle; it is reported, not
    # resubmitted.
    assert ended["landed"] + ended["reused"] + ended["unknown"] == COUNT
    assert ended["unknown"] <= KILLS * 8
    case.judge(bought=len(case.purchases()), landed=COUNT - ended["unknown"])

    run_id = case.start(BATCH, images=manifest)
    case.ends(BATCH, run_id)
    again = outcomes_of(case, case.task(BATCH, run_id, "batch"))
    assert (again["reused"], again["unknown"]) == (COUNT - ended["unknown"], ended["unknown"])
    assert Counter(one["img_url"] for one in case.purchases()) == bought


def start_spares(live: Live) -> None:
    """Start as many triggerers as may be killed; they come up while the batch begins."""
    for _ in range(KILLS + 1):
        live.airflow.start_triggerer()


def kill_worker(case: Case, batch: TaskKey, after_s: float) -> None:
    """SIGKILL the process of the batch at some moment of its next stays in a worker."""
    case.live.airflow.pid_of_task(batch, timeout_s=60)
    time.sleep(after_s)
    case.live.airflow.pid_of_task(batch, timeout_s=60)
    case.kill(batch)


def kill_triggerers(case: Case, after_s: float, *tasks: TaskKey) -> None:
    """SIGKILL the triggerers that watch these deferred tasks at some moment, while another one is alive."""
    airflow = case.live.airflow
    for task in tasks:
        case.wait_task(task, "deferred")
    time.sleep(after_s)
    lost = {airflow.triggerer_of(task, timeout_s=60) for task in tasks}
    case.wait_until(lambda: len(airflow.triggerers) > len(lost), "a triggerer that goes on")
    for triggerer in lost:
        airflow.kill_triggerer(triggerer)
    case.mark_failure()
