# SPDX-License-Identifier: Apache-2.0
"""Submit, wait and land: a SIGKILL or an outage at any point buys once and lands one whole video."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.operators import chain_worker
from tests.operators.chain_worker import all_at_once, chain
from tests.sandboxes import VIDEO_BYTES, Bucket
from tests.task_runs import connect
from wan_sandbox.server import Sandbox

PATIENCE_S = 120

#: Where the worker is when it is killed: the fault that holds it there, and the call that the fault is about.
POINTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "reading-the-image": ("bucket.get", "hang", {"count": 1}),
    "claiming": ("bucket.upload", "hang", {"count": 1}),
    "waiting": ("generation", "stuck_running", {}),
    "downloading": ("media", "stall", {"count": 1}),
    "uploading": ("bucket.upload", "hang", {"count": 1}),
    "uploaded": ("bucket.upload", "hang_after", {"count": 1}),
}


@pytest.fixture
def image(bucket: Bucket) -> Callable[[str], str]:
    """Publishes an image of a name, and returns its address."""
    file = io.BytesIO()
    Image.new("RGB", (400, 400), "teal").save(file, "PNG")

    def publish(name: str) -> str:
        bucket.client.bucket("images").blob(f"{name}.png").upload_from_string(file.getvalue())
        return f"{bucket.sandbox.bucket_url}/images/{name}.png"

    return publish


def purchases(sandbox: Sandbox, name: str) -> list[dict[str, Any]]:
    return [row for row in sandbox.ledger()["purchases"] if row["img_url"].endswith(f"/{name}.png")]


def until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def hold(sandbox: Sandbox, point: str, img_url: str) -> Callable[[], bool]:
    """Add the fault that holds a worker at a point; returns what says whether it is there."""
    call, fault, rule = POINTS[point]
    about: dict[str, Any] = {"img_url_contains": img_url}
    if call == "bucket.get":
        about = {"object_contains": f"{point}.png"}
    elif point.startswith("upload"):
        about = {"object_contains": f"{point}/video.mp4"}
    elif point == "claiming":
        about = {"object_contains": fingerprint_of(img_url)}
    rule_id = sandbox.add_fault(call, fault, **rule, **about)

    def is_there() -> bool:
        if point == "waiting":
            return any(row["status_calls"] for row in purchases(sandbox, point))
        return any(rule["id"] == rule_id and rule["hits"] for rule in sandbox.control("faults")["faults"])

    return is_there


def fingerprint_of(img_url: str) -> str:
    from airflow_provider_wan.model_api.video_spec import make_video_spec
    from tests.sandboxes import MODEL

    return make_video_spec(MODEL, {"prompt": "a slow wave", "img_url": img_url}).fingerprint


def test_worker_killed_at_any_point_buys_and_lands_once(
    sandbox: Sandbox, bucket: Bucket, image: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, sandbox, timeout=60)
    sandbox.control("account", {"concurrency": 50})
    urls = {point: image(point) for point in POINTS}
    there = {point: hold(sandbox, point, url) for point, url in urls.items()}
    worker = subprocess.Popen(
        [sys.executable, chain_worker.__file__, *urls.values()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ThreadPoolExecutor(1) as reader:
        output = reader.submit(worker.communicate)
        try:
            for point in POINTS:
                until(lambda point=point: there[point]() or worker.poll() is not None, point)
            assert worker.poll() is None, output.result()[0]
        finally:
            worker.kill()
            output.result()
    sandbox.clear_faults()
    [waits] = purchases(sandbox, "waiting")
    sandbox.control(f"requests/{waits['request_id']}", {"state": "succeeded"})

    all_at_once(list(urls.values()))

    assert {point: len(purchases(sandbox, point)) for point in POINTS} == dict.fromkeys(POINTS, 1)
    videos = {name: row for name, row in bucket.objects().items() if name.endswith("/video.mp4")}
    assert sorted(videos) == sorted(f"{point}/video.mp4" for point in POINTS)
    assert {(row["size_bytes"], row["writes"]) for row in videos.values()} == {(VIDEO_BYTES, 1)}


@pytest.mark.parametrize(
    ("call", "fault", "rule"),
    [
        ("submit", "overloaded", {"count": 2, "retry_after": 1}),
        ("status", "status", {"count": 1}),
        ("result", "status", {"count": 1}),
        ("media", "status", {"count": 1}),
        ("media", "drop_at", {"count": 1}),
    ],
)
def test_runcomfy_outage_buys_and_lands_once(
    sandbox: Sandbox, bucket: Bucket, image: Callable[[str], str], call: str, fault: str, rule: dict[str, Any]
) -> None:
    img_url = image("out")
    sandbox.add_fault(call, fault, **rule)
    landed_once_in_spite(sandbox, bucket, img_url, hits=rule["count"])


@pytest.mark.parametrize(("what", "skip"), [("claim", 0), ("id", 1), ("video", 0)])
def test_bucket_outage_buys_and_lands_once(
    sandbox: Sandbox, bucket: Bucket, image: Callable[[str], str], what: str, skip: int
) -> None:
    img_url = image("out")
    name = "out/video.mp4" if what == "video" else fingerprint_of(img_url)
    sandbox.add_fault("bucket.upload", "status", object_contains=name, skip=skip, count=2)
    landed_once_in_spite(sandbox, bucket, img_url, hits=2)


def landed_once_in_spite(sandbox: Sandbox, bucket: Bucket, img_url: str, *, hits: int) -> None:
    [landed] = chain(img_url, deferrable=True)
    assert [rule["hits"] for rule in sandbox.control("faults")["faults"]] == [hits]
    assert len(purchases(sandbox, "out")) == 1
    assert sandbox.ledger()["too_early"] == []
    row = bucket.objects()["out/video.mp4"]
    assert (row["size_bytes"], row["writes"]) == (VIDEO_BYTES, 1)
    assert landed["uri"].endswith("out/video.mp4")
