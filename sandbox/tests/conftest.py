# SPDX-License-Identifier: Apache-2.0
"""Sandboxes for the tests of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.tests.api_client import Client
from sandbox.tests.bucket_support import BucketServer
from wan_sandbox.server import Sandbox

VIDEO_BYTES = 50_000


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that checks no images, encodes no videos, and runs each generation for an hour."""
    settings = {"video_bytes": VIDEO_BYTES, "check_images": False, "generation_seconds": 3600}
    with Sandbox(**settings, concurrency=2) as started:
        yield started


@pytest.fixture
def client(sandbox: Sandbox) -> Client:
    return Client(sandbox)


@pytest.fixture(scope="module")
def running() -> Iterator[BucketServer]:
    """One bucket server for all tests of a file."""
    with BucketServer() as server:
        yield server


@pytest.fixture
def server(running: BucketServer) -> BucketServer:
    """The bucket server of the file, emptied and without faults."""
    running.reset()
    return running
