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


def names_taken(
    client: storage.Client, bucket_name: str, wanted: Collection[str], *, list_at_most: int
) -> set[str]:
    """Tell which of these names are taken: by one listing, and one by one where that gets too long.

    :param client: a Cloud Storage client.
    :param bucket_name: the bucket that the videos go to.
    :param list_at_most: names in the listing; there may be far more in the folder than are wanted.
    :raises WanStorageError: the bucket can't be read.
    """
    if not wanted:
        return set()
    bucket = client.bucket(bucket_name)
    first, last = min(wanted), max(wanted)
    prefix = posixpath.commonprefix((first, last))
    found: set[str] = set()
    with storage_errors(f"Listing gs://{bucket_name}/{prefix}"):
        for number, blob in enumerate(
            client.list_blobs(
                bucket,
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
                return found | _names_there(bucket, [name for name in wanted if name > blob.name])
    return found


def _names_there(bucket: storage.Bucket, names: Collection[str]) -> set[str]:
    def is_there(name: str) -> bool:
        with storage_errors(f"Looking for gs://{bucket.name}/{name}"):
            return bool(bucket.blob(name).exists(timeout=TIMEOUT_S, retry=retry_policy()))

    with ThreadPoolExecutor(_LOOK_THREADS, "wan-look") as pool:
        return {name for name, found in zip(names, pool.map(is_there, names), strict=True) if found}
