# SPDX-License-Identifier: Apache-2.0
"""Check and fix a dataset of images before any video is paid for.

``plan`` reads the headers of the images and estimates the cost of their videos. ``prepare`` fixes the images that can
be fixed and writes manifests of a hundred rows each, to map a task over. Neither task buys anything. Both can be run
again at any time: prepared images are found and reused.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

with DAG(
    "wan_dataset_prepare",
    schedule=None,
    params={
        "dataset": Param(
            "gs://my-bucket/photos/",
            type=["string", "array"],
            description="A prefix (gs://bucket/photos/), a manifest (.csv, .jsonl), or a list of addresses",
        ),
        "staging": Param("gs://my-bucket/_staged", type="string", description="Where fixed copies go"),
        "prompt": Param("A slow move closer", type="string", description="For rows without their own"),
        "journal": Param("", type="string", description="gs://... of earlier videos, for the plan; or empty"),
    },
    render_template_as_native_obj=True,
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    # [START howto_operator_wan_prepare_images_plan]
    plan = WanPrepareImagesOperator(
        task_id="plan",
        dataset="{{ params.dataset }}",
        staging="{{ params.staging }}",
        inputs={"prompt": "{{ params.prompt }}"},
        journal="{{ params.journal }}",
        dry_run=True,
    )
    # [END howto_operator_wan_prepare_images_plan]
    # [START howto_operator_wan_prepare_images]
    prepare = WanPrepareImagesOperator(
        task_id="prepare",
        dataset="{{ params.dataset }}",
        staging="{{ params.staging }}",
        inputs={"prompt": "{{ params.prompt }}"},
        on_invalid="skip",  # unusable images are in the report, the others go on
        tolerated_share=0.5,
    )
    # [END howto_operator_wan_prepare_images]
    plan >> prepare
