# SPDX-License-Identifier: Apache-2.0
"""The smallest example Dag, run by Airflow against the sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dag_runs import run_example
from tests.sandboxes import VIDEO_BYTES, Bucket
from tests.task_runs import purchases
from wan_sandbox.server import Sandbox

PHOTO = Path(__file__).resolve().parent.parent.parent / "demo" / "photos" / "coffee.jpg"


@pytest.fixture
def image_url(bucket: Bucket) -> str:
    bucket.put("photos/coffee.jpg", PHOTO.read_bytes(), "image/jpeg")
    return f"{bucket.sandbox.bucket_url}/videos/photos/coffee.jpg"


@pytest.mark.usefixtures("airflow_db")
def test_an_image_becomes_one_video_in_the_bucket_however_often_it_runs(
    sandbox: Sandbox, bucket: Bucket, image_url: str
) -> None:
    conf = {"img_url": image_url, "prompt": "steam rises", "bucket": "videos"}
    first, second = run_example("wan_single_video", conf), run_example("wan_single_video", conf)
    assert first.states() == second.states() == {"generate": "success", "land": "success"}
    assert len(purchases(sandbox)) == 1
    [video] = first.xcom("land")
    assert video["size_bytes"] == VIDEO_BYTES
    assert second.xcom("land") == [video]
    assert bucket.objects(video["object_name"])[video["object_name"]]["writes"] == 1
    assert bucket.read(video["object_name"])[4:8] == b"ftyp"


@pytest.mark.usefixtures("airflow_db")
def test_a_new_prompt_is_a_new_video(sandbox: Sandbox, bucket: Bucket, image_url: str) -> None:
    for prompt in ("steam rises", "the cup turns"):
        conf = {"img_url": image_url, "prompt": prompt, "bucket": "videos"}
        assert run_example("wan_single_video", conf).state == "success"
    assert len(purchases(sandbox)) == 2
