# SPDX-License-Identifier: Apache-2.0
"""What stands at a batch's destination before it begins: names only, so that what the journal tells of is there."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, storage_errors

if TYPE_CHECKING:
    from google.cloud import storage

_LOOK_THREADS = 16


class Destination:
    """The bucket that a batch's videos go to.

    :param client: a Cloud Storage client.
    """

    def __init__(self, client: storage.Client, bucket_name: str) -> None:
        self._client = client
        self._bucket_name = bucket_name

    def taken(self, wanted: Collection[str], *, list_at_most: int) -> set[str]:
        """Tell which of these names are taken: by one listing, and one by one where that gets too long.

        :param list_at_most: names in the listing; there may be far more in the folder than are wanted.
        :raises WanStorageError: the bucket can't be read.
        """
        if not wanted:
            return set()
        first, last = min(wanted), max(wanted)
        prefix = posixpath.commonprefix((first, last))
        found: set[str] = set()
        with storage_errors(f"Listing gs://{self._bucket_name}/{prefix}"):
            for number, blob in enumerate(
                self._client.list_blobs(
                    self._bucket_name,
                    prefix=prefix,
                    start_offset=first,
                    end_offset=last + "!",  # the first name that is not listed any more
                    delimiter=None if any("/" in name[len(prefix) :] for name in wanted) else "/",
                    fields="items(name),nextPageToken",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            ):
                if blob.name in wanted:
                    found.add(blob.name)
                if number >= list_at_most:
                    return found | self._look_at([name for name in wanted if name > blob.name])
        return found

    def _look_at(self, names: Collection[str]) -> set[str]:
        with ThreadPoolExecutor(_LOOK_THREADS, "wan-look") as pool:
            return {
                name for name, is_there in zip(names, pool.map(self._exists, names), strict=True) if is_there
            }

    def _exists(self, name: str) -> bool:
        with storage_errors(f"Looking for gs://{self._bucket_name}/{name}"):
            is_there: bool = (
                self._client.bucket(self._bucket_name)
                .blob(name)
                .exists(timeout=TIMEOUT_S, retry=retry_policy())
            )
            return is_there
