# SPDX-License-Identifier: Apache-2.0
"""The buttons on a task's page: the video, its bucket, and RunComfy's list of generations.

Airflow asks for them in the worker each time a task leaves it, a deferral included, and keeps the answers as XComs.
So they stand there while a request is still waited for, and again after a later try has taken it over.
"""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_wan.utils.link_state import LinkState

GENERATIONS_URL = "https://www.runcomfy.com/generations"
_BUCKET_URL = "https://console.cloud.google.com/storage/browser/"
_OBJECT_URL = "https://storage.cloud.google.com/"


def _seen(operator: Any) -> LinkState:
    seen = getattr(operator, "seen", None)
    return seen if isinstance(seen, LinkState) else LinkState()


class WanVideoLink(BaseOperatorLink):
    """The video: in the bucket once it has landed, before that at RunComfy, where its link is short-lived."""

    name = "Video"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Give the address; empty while there is no video."""
        seen = _seen(operator)
        if seen.landed:
            return _OBJECT_URL + quote("/".join(seen.landed))
        url = seen.video_url or ""
        if url.startswith("gs://"):
            return _OBJECT_URL + quote(url.removeprefix("gs://"))
        return url if url.startswith(("https://", "http://")) else ""


class WanBucketLink(BaseOperatorLink):
    """The folder of the video in the Cloud console."""

    name = "Bucket"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Give the address; empty while nothing has landed."""
        landed = _seen(operator).landed
        return _BUCKET_URL + quote(posixpath.join(landed[0], posixpath.dirname(landed[1]))) if landed else ""


class WanGenerationsLink(BaseOperatorLink):
    """The generations page of the RunComfy account, where a person finds a request by its id."""

    name = "RunComfy generations"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Give the address; empty while there is no request."""
        return GENERATIONS_URL if _seen(operator).request_id else ""
