# SPDX-License-Identifier: Apache-2.0
"""The buttons on a task's page: the video, its bucket, and RunComfy's list of generations.

Airflow calls ``get_link`` in the worker each time a task leaves it, also for a deferral, and stores the answers as
XComs. So the links work while a request is waited for, and after a later try has adopted it.
"""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_wan.utils.task import LinkState

GENERATIONS_URL = "https://www.runcomfy.com/generations"
_BUCKET_URL = "https://console.cloud.google.com/storage/browser/"
_OBJECT_URL = "https://storage.cloud.google.com/"


def _state_of(operator: Any) -> LinkState:
    state = getattr(operator, "link_state", None)
    return state if isinstance(state, LinkState) else LinkState()


class WanVideoLink(BaseOperatorLink):
    """The video: in the bucket once it has landed, before that at RunComfy, where its link is short-lived."""

    name = "Video"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address; empty while there is no video."""
        state = _state_of(operator)
        if state.landed:
            return _OBJECT_URL + quote("/".join(state.landed))
        url = state.video_url or ""
        if url.startswith("gs://"):
            return _OBJECT_URL + quote(url.removeprefix("gs://"))
        return url if url.startswith(("https://", "http://")) else ""


class WanBucketLink(BaseOperatorLink):
    """The folder of the video in the Cloud console."""

    name = "Bucket"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address; empty while nothing has landed."""
        landed = _state_of(operator).landed
        return _BUCKET_URL + quote(posixpath.join(landed[0], posixpath.dirname(landed[1]))) if landed else ""


class WanGenerationsLink(BaseOperatorLink):
    """The generations page of the RunComfy account, where a person finds a request by its id."""

    name = "RunComfy generations"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address; empty while there is no request."""
        return GENERATIONS_URL if _state_of(operator).request_id else ""
