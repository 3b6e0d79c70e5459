# SPDX-License-Identifier: Apache-2.0
"""Backfill a partitioned dataset: every day's images become videos, in as few tasks as will do.

Images lie under ``{source}/dt=YYYY-MM-DD/``; videos go to ``gs://{bucket}/{prefix}/dt=YYYY-MM-DD/``, with journal and
manifest beside them. The days since the first one are caught up. A day that runs again, or twice at once, buys nothing
that was bought before. A day without images is skipped.

Needs a pool, which says how many chunks are under way at the same time::

    airflow pools set wan 4 "chunks of backfills" --include-deferred
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

with DAG(
    "wan_backfill_dataset",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=True,
    max_active_runs=4,
    params={
        "source": Param("gs://my-images/photos", type="string", description="Prefix of the partitions"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
        "prefix": Param("videos", type="string", description="Prefix of the videos in it"),
        "prompt": Param("A slow move closer", type="string", maxLength=800),
        "max_cost_usd": Param(100.0, type="number", minimum=0, description="For each day"),
    },
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30), "pool": "wan"},
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    prepare = WanPrepareImagesOperator(
        task_id="prepare",
        dataset="{{ params.source }}/dt={{ ds }}/",
        staging="gs://{{ params.bucket }}/{{ params.prefix }}/_staging",
        chunk_size=300,
        on_invalid="skip",  # bad images stop nobody else; the report tells which
        tolerated_share=1,
        on_empty="skip",
    )
    # [START howto_operator_wan_batch]
    WanBatchOperator.partial(
        task_id="make_videos",
        bucket_name="{{ params.bucket }}",
        object_name="{{ params.prefix }}/dt={{ ds }}/",
        prompt="{{ params.prompt }}",
        max_cost_usd="{{ params.max_cost_usd }}",
        share_of="{{ ti.xcom_pull(task_ids='prepare', key='summary')['chunks'] }}",
        max_failures="5%",
        retries_per_image=1,
        resume_after=60,
    ).expand(images=prepare.output)
    # [END howto_operator_wan_batch]
