# SPDX-License-Identifier: Apache-2.0
"""Responses for these tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import settings

from airflow_provider_wan.model_api.values import Reply

MODEL = "wan-ai/wan-2-2/image-to-video"
#: The same examples in every run, so that failures are reproducible.
STEADY = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def reply(status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> Reply:
    """An answer with this body: bytes as they are, anything else as JSON."""
    return Reply(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())
