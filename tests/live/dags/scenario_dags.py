# SPDX-License-Identifier: Apache-2.0
"""The Dags of the live scenarios: as small as they can be, and told everything by the run's configuration.

``img_url``, ``name`` (prefix of what lands), ``conn_id``, ``journal`` and ``resolve``; each scenario has its own.
``resolve`` may come from a Variable, too.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

CONN_ID = "{{ dag_run.conf.get('conn_id', 'wan_default') }}"
# Enough for the harm of a scenario and for a try that a busy scheduler takes for lost: see docs/guarantees.md.
RETRIES = {"retries": 3, "retry_delay": timedelta(0)}
WANTED: dict[str, Any] = {
    "prompt": "A slow move closer",
    "wan_conn_id": CONN_ID,
    "journal": "{{ dag_run.conf.get('journal', '') }}",
    "resolve": "{{ dag_run.conf.get('resolve') or var.json.get('resolve-' ~ dag_run.conf.name, '') }}",
}
IMG_URL = "{{ dag_run.conf.img_url }}"
WAIT: dict[str, Any] = {"wait_for_completion": True, "poll_interval": 1}


def land(request: Any) -> WanToGCSOperator:
    """Land the video of a request under the name of the scenario."""
    return WanToGCSOperator(
        task_id="land",
        request=request,
        bucket_name="live-videos",
        object_name="{{ dag_run.conf.name }}/video.mp4",
        wan_conn_id=CONN_ID,
    )


with DAG("scenario_wait", schedule=None, default_args=RETRIES):
    land(WanSubmitOperator(task_id="make", img_url=IMG_URL, **WANTED, **WAIT).output)

with DAG("scenario_wait_in_worker", schedule=None, default_args=RETRIES):
    land(WanSubmitOperator(task_id="make", img_url=IMG_URL, deferrable=False, **WANTED, **WAIT).output)

with DAG("scenario_chain", schedule=None, default_args=RETRIES):
    submitted = WanSubmitOperator(task_id="submit", img_url=IMG_URL, **WANTED)
    awaited = WanRequestSensor(task_id="wait", request=submitted.output, poke_interval=1, wan_conn_id=CONN_ID)
    land(awaited.output)

# Nothing comes after the wait, so it can be marked as anything.
with DAG("scenario_mark", schedule=None, default_args=RETRIES):
    WanSubmitOperator(task_id="make", img_url=IMG_URL, **WANTED, **WAIT)

with DAG("scenario_mark_mapped", schedule=None, default_args=RETRIES):
    WanSubmitOperator.partial(task_id="make", **WANTED, **WAIT).expand(
        img_url=[f"{{{{ dag_run.conf.img_urls[{index}] }}}}" for index in range(3)]
    )

with DAG("scenario_run_timeout", schedule=None, default_args=RETRIES, dagrun_timeout=timedelta(hours=1)):
    WanSubmitOperator(task_id="make", img_url=IMG_URL, **WANTED, **WAIT)

BATCH: dict[str, Any] = {
    "images": "{{ dag_run.conf.images }}",
    "bucket_name": "live-videos",
    "object_name": "{{ dag_run.conf.name }}/",
    "prompt": WANTED["prompt"],
    "resolve": WANTED["resolve"],
    "wan_conn_id": CONN_ID,
    "resume_after": 2,
}

with DAG("scenario_batch", schedule=None, default_args=RETRIES):
    WanBatchOperator(task_id="batch", **BATCH)

# Every kill of its worker costs a try.
with DAG("scenario_batch_crowd", schedule=None, default_args=RETRIES | {"retries": 30}):
    WanBatchOperator(task_id="batch", max_in_flight=60, max_failures="100%", check_image=False, **BATCH)
