# SPDX-License-Identifier: Apache-2.0
"""Scheduled content: every day a few images of a catalogue become videos in a bucket.

The catalogue is in the Airflow Variable ``wan_daily_content``, or in the run's configuration::

    {"bucket": "my-videos", "per_day": 2, "images": [{"img_url": "https://...", "prompt": "..."}, ...]}

Each day takes the next ``per_day`` images of the catalogue and starts over at its end. Object names contain the day,
and ``variation`` is the day. A rerun or a backfill of a day therefore finds its videos and buys nothing, and an image
whose turn comes again gets a new take. The day is the logical date, or the current day in a run without one.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Param, Variable, dag, get_current_context, task, task_group

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

FIRST_DAY = pendulum.datetime(2026, 1, 1, tz="UTC")


@dag(
    schedule="@daily",
    start_date=FIRST_DAY,
    catchup=False,  # True buys the missed days as well, each once
    max_active_runs=2,
    params={
        "bucket": Param("", type="string", description="Bucket of the videos. Default: the one in the Variable"),
        "per_day": Param(0, type="integer", minimum=0, description="Images a day. 0: as in the Variable, or all"),
        "images": Param([], type="array", description="Catalogue. Default: the one in the Variable"),
    },
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30)},
    tags=["wan", "example"],
    doc_md=__doc__,
)
def wan_daily_content() -> None:
    @task
    def pick_todays_images() -> list[dict[str, str]]:
        context = get_current_context()
        dag_run = context["dag_run"]
        day = pendulum.instance(dag_run.logical_date or dag_run.run_after).in_tz("UTC")
        settings = Variable.get("wan_daily_content", default={}, deserialize_json=True)
        settings |= {name: value for name, value in context["params"].items() if value}
        catalogue = settings.get("images")
        if not catalogue or not settings.get("bucket"):
            raise AirflowFailException(
                "There is nothing to make: set the Airflow Variable wan_daily_content, or the parameters bucket and "
                'images of this run. Example: {"bucket": "my-videos", "per_day": 2, "images": [{"img_url": '
                '"https://...", "prompt": "..."}]}'
            )
        per_day = min(settings.get("per_day") or len(catalogue), len(catalogue))
        first = (day.date() - FIRST_DAY.date()).days * per_day
        picked = [catalogue[(first + place) % len(catalogue)] for place in range(per_day)]
        return [
            {
                "img_url": shot["img_url"],
                "prompt": shot["prompt"],
                "bucket": settings["bucket"],
                "object_name": f"{day:YYYY/MM/DD}/{PurePosixPath(urlsplit(shot['img_url']).path).stem}.mp4",
                "journal": f"gs://{settings['bucket']}/_journal",
                "day": day.to_date_string(),
            }
            for shot in picked
        ]

    @task_group
    def make_video(img_url: str, prompt: str, bucket: str, object_name: str, journal: str, day: str) -> None:
        # [START howto_operator_wan_submit]
        submit = WanSubmitOperator(
            task_id="submit",
            img_url=img_url,
            prompt=prompt,
            resolution="480P",
            variation=day,  # one take a day; a rerun of the day buys nothing
            journal=journal,  # a rerun, in any run, finds the request
            on_invalid="skip",  # a bad image costs nothing and skips only its own chain
            map_index_template="{{ task.img_url.split('/')[-1] }}",
        )
        # [END howto_operator_wan_submit]
        # [START howto_sensor_wan_request]
        wait = WanRequestSensor(
            task_id="wait",
            request=submit.output,
            timeout=pendulum.duration(hours=2),
        )
        # [END howto_sensor_wan_request]
        # [START howto_transfer_wan_to_gcs]
        WanToGCSOperator(
            task_id="land",
            request=wait.output,
            bucket_name=bucket,
            object_name=object_name,
        )
        # [END howto_transfer_wan_to_gcs]

    make_video.expand_kwargs(pick_todays_images())


wan_daily_content()
