# SPDX-License-Identifier: Apache-2.0
"""The inputs and outputs of the example Dag ``dags/wan_daily_content.py``."""

from __future__ import annotations

from typing import Any

from demo.airflow_client import AirflowClient, TaskKey
from demo.gallery import VIDEOS_BUCKET

DAG_ID = "wan_daily_content"
SUBMIT = "make_video.submit"
LOGICAL_DATE = "2026-01-15T00:00:00+00:00"

PROMPTS = {
    "astronaut.jpg": "The astronaut smiles and turns her head slowly towards the camera",
    "chelsea.jpg": "The cat blinks and looks up",
    "coffee.jpg": "Steam rises from the coffee, the camera glides closer",
    "horse_rgba.png": "The horse breaks into a gallop",
    "hubble_deep_field.jpg": "A slow flight through the galaxies",
    "rocket.jpg": "The rocket lifts off, smoke billows over the launch pad",
}


def start(client: AirflowClient, photo_urls: dict[str, str]) -> str:
    """Start the run of one day for these photographs, by file name, and return its id."""
    images = [{"img_url": url, "prompt": PROMPTS[name]} for name, url in photo_urls.items()]
    client.unpause(DAG_ID)
    return client.trigger(DAG_ID, {"bucket": VIDEOS_BUCKET, "images": images}, logical_date=LOGICAL_DATE)


def refused_so_far(client: AirflowClient, run_id: str) -> list[str]:
    """Return the file names of the photographs whose submit was skipped; they are the names of the map indexes."""
    rows = client.task_instances(DAG_ID, run_id, SUBMIT)
    return [row["rendered_map_index"] for row in rows if row["state"] == "skipped" and row["rendered_map_index"]]


def refusals(client: AirflowClient, run_id: str) -> dict[str, str]:
    """Return the rule that each refused photograph broke, by file name."""
    rows = client.task_instances(DAG_ID, run_id, SUBMIT)
    return {
        row["rendered_map_index"]: _rule(client.xcom(TaskKey(DAG_ID, run_id, SUBMIT, row["map_index"]), "refused"))
        for row in rows
        if row["state"] == "skipped"
    }


def _rule(refused: Any) -> str:
    """Return the rules of the XCom ``refused``: a list of ``{"img_url", "rule"}``."""
    return " ".join(str(one["rule"]) for one in refused or [])
