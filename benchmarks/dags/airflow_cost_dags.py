# SPDX-License-Identifier: Apache-2.0
"""The same images as a mapped chain of three tasks per image, and as one batch; see
``benchmarks/airflow_cost.py``.

The ``warm_*`` Dags do the same with two images. Images and limits come from environment variables, so that no
extra task has to pass them.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from airflow_cost_stamps import StampedBatchTrigger, stamp

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

IMAGES: dict[str, list[str]] = json.loads(os.environ["BENCHMARK_IMAGES"])
BATCH: dict[str, Any] = json.loads(os.environ["BENCHMARK_BATCH"])
RETRIES = {"retries": 2, "retry_delay": timedelta(0)}


class StampedBatchOperator(WanBatchOperator):
    """Records when its code starts to run and when it leaves the worker."""

    def execute(self, context: Any) -> Any:
        """Start the batch."""
        stamp(self.dag_id, "begun")
        try:
            return super().execute(context)
        finally:
            stamp(self.dag_id, "left")

    def execute_complete(self, context: Any, event: Any) -> Any:
        """Resume after a wait."""
        stamp(self.dag_id, "resumed")
        try:
            return super().execute_complete(context, event)
        finally:
            stamp(self.dag_id, "left")

    def defer(self, *, trigger: Any, **options: Any) -> None:
        """Defer to a trigger that records when it starts and when it fires."""
        super().defer(trigger=StampedBatchTrigger(dag=self.dag_id, **trigger.serialize()[1]), **options)


for size in ("warm", "full"):
    with DAG(f"{size}_chain", schedule=None, default_args=RETRIES):
        submit = WanSubmitOperator.partial(task_id="submit", prompt="A slow move closer").expand(
            img_url=IMAGES[f"{size}_chain"]
        )
        wait = WanRequestSensor.partial(task_id="wait").expand(request=submit.output)
        WanToGCSOperator.partial(task_id="land", bucket_name="videos", object_name=f"{size}-chain/").expand(
            request=wait.output
        )

    with DAG(f"{size}_batch", schedule=None, default_args=RETRIES):
        StampedBatchOperator(
            task_id="batch",
            images=IMAGES[f"{size}_batch"],
            bucket_name="videos",
            object_name=f"{size}-batch/",
            prompt="A slow move closer",
            **BATCH,
        )
