# SPDX-License-Identifier: Apache-2.0
"""The links (buttons) on a task's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_wan.links.wan import GENERATIONS_URL, WanBucketLink, WanGenerationsLink, WanVideoLink
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from airflow_provider_wan.utils.task import LinkState

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

REQUEST = "00000000-0000-4000-8000-000000000001"
IMAGE = "https://images.example.com/a.jpg"


class Holder:
    """The part of an operator that links use."""

    def __init__(self, seen: LinkState | None) -> None:
        self.link_state = seen


@pytest.mark.parametrize(
    ("seen", "video", "bucket", "generations"),
    [
        (None, "", "", ""),
        (LinkState(), "", "", ""),
        (LinkState(REQUEST), "", "", GENERATIONS_URL),
        (
            LinkState(REQUEST, "https://cdn.example.com/v.mp4"),
            "https://cdn.example.com/v.mp4",
            "",
            GENERATIONS_URL,
        ),
        (LinkState(REQUEST, "javascript:alert(1)"), "", "", GENERATIONS_URL),
        (
            LinkState(REQUEST, "gs://videos/a b.mp4"),
            "https://storage.cloud.google.com/videos/a%20b.mp4",
            "",
            GENERATIONS_URL,
        ),
        (
            LinkState(REQUEST, landed=("videos", "2026/a?b#c.mp4")),
            "https://storage.cloud.google.com/videos/2026/a%3Fb%23c.mp4",
            "https://console.cloud.google.com/storage/browser/videos/2026",
            GENERATIONS_URL,
        ),
    ],
)
def test_links_follow_the_tasks_state(seen: LinkState | None, video: str, bucket: str, generations: str) -> None:
    operator = Holder(seen)
    links = (WanVideoLink(), WanBucketLink(), WanGenerationsLink())
    assert [link.get_link(operator, ti_key=None) for link in links] == [video, bucket, generations]


class TaskInstance:
    """The part of a task instance that operators use; keeps the XComs."""

    dag_id, run_id, task_id, map_index = "d", "r", "t", -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def links_of(operator: Any) -> dict[str, str]:
    return {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links}


def submit(**more: Any) -> WanSubmitOperator:
    return WanSubmitOperator(
        task_id="submit",
        prompt="a wave",
        img_url=IMAGE,
        check_image=False,
        journal="gs://videos/_journal",
        **more,
    )


def test_links_are_restored_after_a_later_try_adopts_the_request(sandbox: Sandbox) -> None:
    context: dict[str, Any] = {"ti": TaskInstance(), "outlet_events": {}}
    first = submit().execute(context)
    later = submit(wait_for_completion=True, deferrable=False)

    result = later.execute(context)

    assert result["request_id"] == first["request_id"]
    assert sandbox.ledger()["purchases_count"] == 1
    assert links_of(later) == {"Video": result["videos"][0], "RunComfy generations": GENERATIONS_URL}


def test_deferred_task_links_to_its_request(sandbox: Sandbox) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred

    sandbox.control("speed", {"generation_seconds": 3600})
    task, instance = submit(wait_for_completion=True), TaskInstance()
    with pytest.raises(TaskDeferred):
        task.execute({"ti": instance, "outlet_events": {}})
    assert links_of(task)["RunComfy generations"] == GENERATIONS_URL
    assert instance.pushed["request"]["request_id"] == task.link_state.request_id


def test_failed_generation_pushes_its_reason_for_the_gallery(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", error="the picture shows too much")
    context: dict[str, Any] = {"ti": TaskInstance(), "outlet_events": {}}
    request = submit().execute(context)
    sensor = WanRequestSensor(task_id="wait", request=request)

    with pytest.raises(Exception, match="shows too much"):
        sensor.poke(context)

    failed = context["ti"].pushed["failed"]
    assert (failed["request_id"], failed["kind"]) == (request["request_id"], "WanGenerationFailedError")
    assert "shows too much" in failed["error"]


def test_every_operator_has_its_links() -> None:
    assert [link.name for link in WanSubmitOperator.operator_extra_links] == ["Video", "RunComfy generations"]
    assert [link.name for link in WanToGCSOperator.operator_extra_links] == [
        "Video",
        "Bucket",
        "RunComfy generations",
    ]
