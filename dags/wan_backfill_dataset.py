# SPDX-License-Identifier: Apache-2.0
"""Turn the images of each day of a partitioned dataset into videos.

Images are read from ``{source}/dt=YYYY-MM-DD/``, and videos are written to ``gs://{bucket}/{prefix}/dt=YYYY-MM-DD/``,
with journal and manifest beside them. The day is the logical date, or the current day in a run without one. A day that
runs again, or twice at once, buys nothing that was bought before. A day without images is skipped.

Unpausing the DAG runs the latest day only. Start with one day while the DAG is paused, then backfill the others::

    airflow dags test wan_backfill_dataset 2026-01-01
    airflow backfill create --dag-id wan_backfill_dataset --from-date 2026-01-02 --to-date 2026-01-30

The DAG needs a pool, which limits how many chunks are under way at the same time::

    airflow pools set wan 4 "chunks of backfills" --include-deferred
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

DAY = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"

with DAG(
    "wan_backfill_dataset",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,  # True runs, and buys, every day since start_date
    max_active_runs=2,
    params={
        "source": Param("gs://my-images/photos", type="string", description="Prefix of the partitions"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
        "prefix": Param("videos", type="string", description="Prefix of the videos in it"),
        "prompt": Param("A slow move closer", type="string", maxLength=800),
        "max_cost_usd": Param(10.0, type="number", minimum=0, description="Limit of each day"),
    },
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30), "pool": "wan"},
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    prepare = WanPrepareImagesOperator(
        task_id="prepare",
        dataset="{{ params.source }}/dt=" + DAY + "/",
        staging="gs://{{ params.bucket }}/{{ params.prefix }}/_staging",
        chunk_size=300,
        on_invalid="skip",  # unusable images are in the report, the others go on
        tolerated_share=1,
        on_empty="skip",
    )
    # [START howto_operator_wan_batch]
    WanBatchOperator.partial(
        task_id="make_videos",
        bucket_name="{{ params.bucket }}",
        object_name="{{ params.prefix }}/dt=" + DAY + "/",
        prompt="{{ params.prompt }}",
        max_cost_usd="{{ params.max_cost_usd }}",
        share_of="{{ ti.xcom_pull(task_ids='prepare', key='summary')['chunks'] }}",
        max_failures="5%",
        retries_per_image=1,
        resume_after=60,
    ).expand(images=prepare.output)
    # [END howto_operator_wan_batch]
