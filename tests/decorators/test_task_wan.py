# SPDX-License-Identifier: Apache-2.0
"""``@task.wan``: the example DAG run by Airflow, and what the function may return."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_wan.decorators.wan import WanDecoratedOperator
from tests.sandboxes import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTO = ROOT / "demo" / "photos" / "coffee.jpg"
IMAGE = "https://images.example.com/a.jpg"


class TaskInstance:
    dag_id, run_id, task_id, map_index = "d", "r", "film", -1

    def xcom_push(self, key: str, value: Any) -> None:
        """Nobody reads it."""


def submitted(sandbox: Sandbox, function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Run a function as ``@task.wan`` does, and return the inputs of the request."""
    task = WanDecoratedOperator(
        task_id="film", python_callable=function, op_args=(), check_image=False, durable=False, **options
    )
    task.execute({"ti": TaskInstance(), "outlet_events": {}})
    (purchase,) = sandbox.ledger()["purchases"]
    inputs: dict[str, Any] = purchase["inputs"]
    return inputs


def test_returned_text_is_the_prompt(sandbox: Sandbox) -> None:
    inputs = submitted(sandbox, lambda: "a wave with {{ braces }}", img_url=IMAGE, seed=5)
    assert inputs == {"prompt": "a wave with {{ braces }}", "img_url": IMAGE, "seed": 5}


def test_returned_inputs_override_the_options(sandbox: Sandbox) -> None:
    inputs = submitted(sandbox, lambda: {"prompt": "a wave", "img_url": IMAGE, "seed": 6}, seed=5, resolution="480P")
    assert inputs == {"prompt": "a wave", "img_url": IMAGE, "seed": 6, "resolution": "480P"}


def test_returned_inputs_may_name_images_in_a_bucket(sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", b"first")
    bucket.put("b.jpg", b"last")
    returned = {"prompt": "a", "image": "gs://videos/a.jpg", "images": {"end_image_url": "gs://videos/b.jpg"}}
    inputs = submitted(sandbox, lambda: returned, model_id="wan-ai/wan-3.0/image-to-video")
    assert [inputs[name][-6:] for name in ("image_url", "end_image_url")] == ["/a.jpg", "/b.jpg"]


@pytest.mark.parametrize("returned", [None, 7, [], {}, ["a wave"]])
def test_anything_else_is_refused_before_paying(sandbox: Sandbox, returned: Any) -> None:
    with pytest.raises(Exception, match="must return a prompt or a mapping"):
        submitted(sandbox, lambda: returned, img_url=IMAGE)
    assert sandbox.ledger()["purchases_count"] == 0


def test_example_dag_submits_the_prompt_of_its_function(
    airflow_db: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud import storage

    storage.Client().bucket("images").blob(PHOTO.name).upload_from_filename(str(PHOTO))
    monkeypatch.syspath_prepend(ROOT / "dags")
    sys.modules.pop("wan_prompt_in_python", None)
    import wan_prompt_in_python

    conf = {
        "img_url": f"{sandbox.bucket_url}/images/{PHOTO.name}",
        "bucket": "videos",
        "subject": "the harbour",
    }
    run = wan_prompt_in_python.dag_object.test(run_conf=conf)

    assert {ti.task_id: str(ti.state) for ti in run.get_task_instances()} == {
        "film": "success",
        "land": "success",
    }
    (purchase,) = sandbox.ledger()["purchases"]
    assert purchase["inputs"]["prompt"] == "Mist drifts out of the harbour, the camera glides closer"
