# SPDX-License-Identifier: Apache-2.0
"""All that the demo knows of the example Dag ``dags/wan_daily_content.py``: how it is fed, and what it says."""

from __future__ import annotations

import json
from typing import Any

from demo.airflow_client import AirflowClient, TaskKey
from demo.gallery import VIDEOS_BUCKET

DAG_ID = "wan_daily_content"
LOGICAL_DATE = "2026-01-15T00:00:00+00:00"

PROMPTS = {
    "astronaut.jpg": "The astronaut smiles and turns her head slowly towards the camera",
    "chelsea.jpg": "The cat blinks and looks up",
    "coffee.jpg": "Steam rises from the coffee, the camera glides closer",
    "horse_rgba.png": "The horse breaks into a gallop",
    "hubble_deep_field.jpg": "A slow flight through the galaxies",
    "rocket.jpg": "The rocket lifts off, smoke billows over the launch pad",
}


def environment(photo_urls: dict[str, str]) -> dict[str, str]:
    """Environment variables of Airflow that feed the Dag."""
    return {}


def conf(photo_urls: dict[str, str]) -> dict[str, Any]:
    """The run's configuration."""
    return {
        "bucket": VIDEOS_BUCKET,
        "images": [{"img_url": url, "prompt": PROMPTS[name]} for name, url in photo_urls.items()],
    }


def start(client: AirflowClient, photo_urls: dict[str, str]) -> str:
    """Start the run of one day and give its id."""
    client.unpause(DAG_ID)
    return client.trigger(DAG_ID, conf(photo_urls), logical_date=LOGICAL_DATE)


def refusals(client: AirflowClient, run_id: str, photo_urls: dict[str, str]) -> dict[str, str]:
    """The rule that each refused photograph broke, by file name."""
    found: dict[str, str] = {}
    for row in client.task_instances(DAG_ID, run_id):
        refused = client.xcom(TaskKey(DAG_ID, run_id, row["task_id"], row["map_index"]), "refused")
        for entry in refused if isinstance(refused, list) else []:
            name = next((name for name, url in photo_urls.items() if url == entry.get("img_url")), None)
            if name is not None:
                found[name] = str(entry.get("rule") or json.dumps(entry))
    return found
