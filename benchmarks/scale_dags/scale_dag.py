# SPDX-License-Identifier: Apache-2.0
"""A backfill in mapped chunks, whose manifests are named in the run's conf; see ``benchmarks/scale.py``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

RETRIES = {"retries": 2, "retry_delay": timedelta(0)}
BATCH: dict[str, Any] = {
    "task_id": "make_videos",
    "bucket_name": "videos",
    "object_name": "scale/",
    "prompt": "waves",
    "check_image": False,
    "resume_after": 30,
}

with DAG("scale_backfill", schedule=None, default_args=RETRIES):

    @task
    def chunks(**context: Any) -> list[str]:
        """Return the manifests of this run."""
        return list(context["dag_run"].conf["chunks"])

    WanBatchOperator.partial(**BATCH).expand(images=chunks())

with DAG("scale_rerun", schedule=None, default_args=RETRIES):
    prepare = WanPrepareImagesOperator(
        task_id="prepare",
        dataset="{{ dag_run.conf['dataset'] }}",
        staging="gs://videos/scale/_staging",
        inputs={"prompt": "waves"},
        journal="gs://videos/scale/_journal",
        skip_landed=True,
        chunk_size=500,
    )
    WanBatchOperator.partial(**BATCH).expand(images=prepare.output)
