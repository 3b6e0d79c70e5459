# SPDX-License-Identifier: Apache-2.0
"""Turn a dataset of images into videos after a person has approved the cost.

``approve`` waits, without a worker slot, for an answer on the *Required Actions* page of the run. *Reject* skips the
rest, and nothing is bought.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

with DAG(
    "wan_dataset_prepare_approved",
    schedule=None,
    params={
        "dataset": Param("gs://my-bucket/photos/", type="string"),
        "staging": Param("gs://my-bucket/_staged", type="string"),
        "prompt": Param("A slow move closer", type="string"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
    },
    default_args={
        "dataset": "{{ params.dataset }}",
        "staging": "{{ params.staging }}",
        "inputs": {"prompt": "{{ params.prompt }}"},
        "journal": "gs://{{ params.bucket }}/_journal",
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    # [START howto_operator_wan_prepare_images_approval]
    plan = WanPrepareImagesOperator(task_id="plan", dry_run=True)
    approve = ApprovalOperator(
        task_id="approve",
        subject="{% set plan = ti.xcom_pull(task_ids='plan') %}"
        "Buy {{ plan.videos_to_buy }} videos for {{ plan.expected_cost_usd }} USD "
        "({{ 'as charged before' if plan.price_source == 'learned' else 'a base price, charges can differ' }})?",
        body="{% set plan = ti.xcom_pull(task_ids='plan') %}"
        "Of {{ plan.images }} images {{ plan.usable_as_they_are }} can be used as they are, {{ plan.fixable }} once "
        "they are fixed, and {{ plan.unusable }} not at all. {{ plan.pricing_note or '' }}"
        "{% for one in plan.problems %}\n- {{ one.image }}: {{ one.message }}{% endfor %}",
        response_timeout=timedelta(days=2),
    )
    prepare = WanPrepareImagesOperator(task_id="prepare", on_invalid="skip", tolerated_share=0.5)
    WanBatchOperator.partial(
        task_id="generate",
        bucket_name="{{ params.bucket }}",
        object_name="videos/",
        max_cost_usd="{{ ti.xcom_pull(task_ids='plan').expected_cost_usd }}",  # the approved amount
        share_of="{{ ti.xcom_pull(task_ids='prepare') | length }}",  # one limit for all chunks
        max_failures="5%",
    ).expand(images=prepare.output)
    # [END howto_operator_wan_prepare_images_approval]
    plan >> approve >> prepare
