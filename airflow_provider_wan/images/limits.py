# SPDX-License-Identifier: Apache-2.0
"""How much of many images is in memory and on the cores at once, whatever sizes they have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_wan.images.many import usable_cores
from airflow_provider_wan.images.origins import WEB_MOST_BYTES

#: Of the files being read and prepared together; one that is larger goes alone.
MOST_BYTES = 256 * 1024 * 1024


class Limits:
    """Bounds for the threads that prepare images: more of them wait for the network than there are cores.

    :param most_bytes: of source files in memory together.
    :param cores: how many images are decoded at once.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, cores: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self.decoding = threading.BoundedSemaphore(cores or usable_cores())

    @contextmanager
    def holding(self, size_bytes: int | None) -> Iterator[None]:
        """Wait until a file of this size may be in memory as well."""
        size = min(WEB_MOST_BYTES if size_bytes is None else size_bytes, self._most_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes + size <= self._most_bytes)
            self._bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()
