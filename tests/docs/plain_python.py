# SPDX-License-Identifier: Apache-2.0
"""What a task without this provider does: the documentation compares with it, and a test runs it."""

from __future__ import annotations

import os
import time

import requests

# [START plain_python]
API = os.environ.get("RUNCOMFY_API", "https://model-api.runcomfy.net")


def generate(prompt: str, img_url: str) -> str:
    """Make one video, as the callable of a PythonOperator."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {os.environ['RUNCOMFY_TOKEN']}"
    model = f"{API}/v1/models/wan-ai/wan-2-2/image-to-video"
    submitted = session.post(model, json={"prompt": prompt, "img_url": img_url}, timeout=60)
    submitted.raise_for_status()
    request = f"{API}/v1/requests/{submitted.json()['request_id']}"
    while True:
        status = session.get(f"{request}/status", timeout=60)
        status.raise_for_status()
        if status.json()["status"] == "completed":
            break
        time.sleep(5)
    return str(session.get(f"{request}/result", timeout=60).json()["output"]["video"])


# [END plain_python]
