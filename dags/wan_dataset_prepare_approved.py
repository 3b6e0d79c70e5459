# SPDX-License-Identifier: Apache-2.0
"""A dataset of images whose cost a person approves before anything goes on.

``approve`` waits, without a worker, for somebody to answer on the run's *Required Actions* page. On *Reject* the rest
is skipped.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

with DAG(
    "wan_dataset_prepare_approved",
    schedule=None,
    params={
        "dataset": Param("gs://my-bucket/photos/", type="string"),
        "staging": Param("gs://my-bucket/_staged", type="string"),
        "prompt": Param("A slow move closer", type="string"),
    },
    default_args={
        "dataset": "{{ params.dataset }}",
        "staging": "{{ params.staging }}",
        "inputs": {"prompt": "{{ params.prompt }}"},
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    # [START howto_operator_wan_prepare_images_approval]
    plan = WanPrepareImagesOperator(task_id="plan", dry_run=True)
    approve = ApprovalOperator(
        task_id="approve",
        subject="{% set plan = ti.xcom_pull(task_ids='plan') %}"
        "Buy {{ plan.videos_to_buy }} videos for {{ plan.expected_cost_usd }} USD?",
        body="{% set plan = ti.xcom_pull(task_ids='plan') %}"
        "Of {{ plan.images }} images {{ plan.usable_as_they_are }} can be used as they are, {{ plan.fixable }} once "
        "they are fixed, and {{ plan.unusable }} not at all."
        "{% for one in plan.problems %}\n- {{ one.image }}: {{ one.message }}{% endfor %}",
        response_timeout=timedelta(days=2),
    )
    prepare = WanPrepareImagesOperator(task_id="prepare", on_invalid="skip", tolerated_share=0.5)
    # [END howto_operator_wan_prepare_images_approval]
    plan >> approve >> prepare
