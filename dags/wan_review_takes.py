# SPDX-License-Identifier: Apache-2.0
"""Make several takes of each image, and publish only those that a person has chosen.

The takes land below ``gs://{bucket}/takes/``, with a contact sheet beside them. Then the run asks one question for each
image, on its page *Required Actions*: which takes are published? The question links the contact sheet and each take. It
waits without a worker slot; after three days without an answer nothing of that image is published.

Chosen takes are copied to ``gs://{bucket}/published/`` inside Cloud Storage, with their records and posters.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, dag, task

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

TAKES = ["take-1", "take-2"]
NONE = "none of them"


def browser_url(uri: str) -> str:
    """Return the address at which a person who may read the bucket sees an object."""
    return "https://storage.cloud.google.com/" + quote(uri.removeprefix("gs://"))


@dag(
    schedule=None,
    params={
        "images": Param("gs://my-images/photos/", type="string", description="Prefix or manifest of images"),
        "prompt": Param("A slow move closer", type="string"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
        "max_cost_usd": Param(5.0, type="number", minimum=0, description="Limit of all takes together"),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
)
def wan_review_takes() -> None:
    # [START howto_review_takes]
    takes = WanBatchOperator.partial(
        task_id="make_takes",
        images="{{ params.images }}",
        prompt="{{ params.prompt }}",
        bucket_name="{{ params.bucket }}",
        object_name="takes/{name}/{variation}.mp4",
        journal="gs://{{ params.bucket }}/takes/_journal",
        max_cost_usd="{{ params.max_cost_usd }}",
        share_of=len(TAKES),
        on_bad_video="reject",  # nobody has to look at a black video
    ).expand(variation=TAKES)
    sheet = WanContactSheetOperator(
        task_id="contact_sheet", bucket_name="{{ params.bucket }}", prefix="takes", manifest=takes.output
    )

    @task
    def list_takes(batches: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the takes that landed, by name, from the manifests of the batches."""
        from google.cloud import storage

        client, takes = storage.Client(), {}
        for batch in batches:
            lines = storage.Blob.from_uri(batch["manifest"], client).download_as_text().splitlines()
            for line in map(json.loads, lines):
                if line["outcome"] in ("landed", "reused"):
                    name = line["uri"].partition("/takes/")[2]
                    takes[name] = line | {"journal": batch["journal"]}
        return takes

    @task
    def list_questions(takes: dict[str, dict[str, Any]], sheet: dict[str, Any]) -> list[dict[str, Any]]:
        by_image = defaultdict(list)
        for name, take in sorted(takes.items()):
            by_image[take["image"]].append(name)
        return [
            {
                "subject": f"Which takes of {image.rpartition('/')[2]} are published?",
                "body": "\n".join(f"- [{name}]({browser_url(takes[name]['uri'])})" for name in names)
                + f"\n\n[Contact sheet]({browser_url(sheet['uri'])})",
                "options": [*names, NONE],
            }
            for image, names in by_image.items()
        ]

    @task
    def list_chosen(takes: dict[str, dict[str, Any]], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chosen = [name for answer in answers for name in answer["chosen_options"] if name != NONE]
        return [{"request": takes[name], "object_name": f"published/{name}"} for name in chosen]

    landed = list_takes(takes.output)
    choose = HITLOperator.partial(
        task_id="choose",
        multiple=True,
        defaults=[NONE],  # when nobody answers in time
        response_timeout=timedelta(days=3),
        map_index_template="{{ task.subject }}",
    ).expand_kwargs(list_questions(landed, sheet.output))
    WanToGCSOperator.partial(task_id="publish", bucket_name="{{ params.bucket }}").expand_kwargs(
        list_chosen(landed, choose.output)
    )
    # [END howto_review_takes]


wan_review_takes()
