# SPDX-License-Identifier: Apache-2.0
"""A chain of submit, sensor and landing that is mapped operator by operator, as the landing's page describes it."""

from __future__ import annotations

from tests.dag_runs import DagFolder
from tests.sandboxes import INPUTS, Bucket
from tests.task_runs import purchases
from wan_sandbox.server import Sandbox

CHAIN = """
submit = WanSubmitOperator.partial(
    task_id="submit", prompt="a slow wave", on_invalid="skip", check_image=False
).expand(img_url=["{good}", "not an address", "{good}?2"])
wait = WanRequestSensor.partial(task_id="wait", trigger_rule="none_failed").expand(request=submit.output)
WanToGCSOperator.partial(
    task_id="land", bucket_name="videos", trigger_rule="none_failed"
).expand(request=wait.output)
"""


def test_paid_videos_land_although_another_image_is_refused(dags: DagFolder, sandbox: Sandbox, bucket: Bucket) -> None:
    run = dags.write(CHAIN.replace("{good}", INPUTS["img_url"]))()
    states = run.states()
    assert [states[f"submit[{index}]"] for index in range(3)] == ["success", "skipped", "success"]
    landed = {f"{request_id}.mp4" for request_id in purchases(sandbox)}
    assert len(landed) == 2
    assert landed <= set(bucket.objects())
