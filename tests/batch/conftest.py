# SPDX-License-Identifier: Apache-2.0
"""A sandbox for batches, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.batch.batch_support import point_at
from wan_sandbox.server import Sandbox


@pytest.fixture(scope="module")
def shared_batch_sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=200, concurrency=10, video_bytes=20_000, check_images=False, buckets=("videos",)) as started:
        yield started


@pytest.fixture
def batch_sandbox(shared_batch_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # A generation takes 0.15 s here: the time reserved for an unknown model must be in proportion.
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    shared_batch_sandbox.reset()
    shared_batch_sandbox.control("speed", {"speed": 200, "generation_seconds": None})
    shared_batch_sandbox.control("account", {"concurrency": 10, "balance_usd": 1000})
    point_at(monkeypatch, shared_batch_sandbox)
    return shared_batch_sandbox
