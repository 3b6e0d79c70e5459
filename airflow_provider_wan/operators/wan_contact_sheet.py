# SPDX-License-Identifier: Apache-2.0
"""The contact sheet: a page of all videos under a prefix, written next to them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.links.wan import WanBucketLink
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.task import LinkState

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.gallery.cards import Card

_READ_AT_ONCE = 8


class WanContactSheetOperator(BaseOperator):
    """Write ``index.html`` next to landed videos: every video with its source image, prompt, seed, model and cost.

    The page is self-contained: links are relative, and pictures of the source images, style and script are embedded.
    So it works in a bucket viewer, on a static web site and in a downloaded folder. It can be sorted and filtered, as
    cards or as a table; without scripts, all cards are shown. It is made from the
    records that :class:`WanToGCSOperator` writes next to the videos, of this run and of earlier ones under the same
    prefix. Videos of several models are shown side by side: a row for each source image, a column for each model.

    Images of a batch that have no video are shown with the reason if its ``manifest`` is given.

    Returns ``{"uri", "videos"}``.

    :param bucket_name: the bucket, without ``gs://``. (templated)
    :param prefix: the folder of the videos; everything under it is shown. Default: the whole bucket. (templated)
    :param object_name: name of the page within the prefix, default ``index.html``. (templated)
    :param manifest: of batches whose images without a video are shown too: the return value of a
        ``WanBatchOperator``, the address of its manifest, or a list of either; ``manifest=batch.output`` works,
        mapped or not. A batch that failed returned nothing; its XCom ``summary`` has the same. (templated)
    :param title: heading of the page; default: bucket and prefix. (templated)
    :param thumbnails: whether to put small pictures of the source images into the page, about 10 kB each; default
        True. An image that cannot be read any more is left out.
    :param max_videos: how many videos are shown at most, the newest first; default 1000. As many images without a
        video are shown.
    :param wan_conn_id: the connection, which decides whether images may come from private addresses; default
        ``wan_default``. (templated)
    :param gcp_conn_id: a Google Cloud connection, which needs the extra ``[google]``; None (default): Application
        Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)
    """

    template_fields: Sequence[str] = (
        "bucket_name", "prefix", "object_name", "manifest", "title", "wan_conn_id", "gcp_conn_id",
        "impersonation_chain",
    )  # fmt: skip
    operator_extra_links = (WanBucketLink(),)
    ui_color = "#d9ecff"

    def __init__(
        self,
        *,
        bucket_name: str,
        prefix: str = "",
        object_name: str = "index.html",
        manifest: Any = None,
        title: str | None = None,
        thumbnails: bool = True,
        max_videos: int = 1000,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bucket_name = bucket_name
        self.prefix = prefix
        self.object_name = object_name
        self.manifest = manifest
        self.title = title
        self.thumbnails = thumbnails
        self.max_videos = max_videos
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()

    def execute(self, context: Any) -> dict[str, Any]:
        """Read the records and write the page."""
        from airflow_provider_wan.gallery.media import read_whole
        from airflow_provider_wan.gallery.pages import (
            card_of_record,
            cards_without_video,
            render_contact_sheet,
        )
        from airflow_provider_wan.hooks.gcs import check_object_name, split_gs_uri, storage_client

        with as_airflow_errors(context):
            bucket, _ = split_gs_uri(f"gs://{self.bucket_name.removeprefix('gs://')}", name="bucket_name")
            prefix = self.prefix.strip("/")
            name = check_object_name(posixpath.join(prefix, self.object_name))
            client = storage_client(self.gcp_conn_id, self.impersonation_chain)
            add_picture = self._add_picture(client)

            def blob_at(uri: str) -> storage.Blob:
                manifest_bucket, manifest_name = split_gs_uri(uri, name="manifest", needs_object=True)
                return client.bucket(manifest_bucket).blob(manifest_name)

            def card_of(record: storage.Blob) -> Card | None:
                try:
                    return add_picture(card_of_record(json.loads(read_whole(record)), page=name))
                except (ValueError, TypeError, KeyError, AttributeError):
                    self.log.warning("gs://%s/%s is not a record and is left out.", bucket, record.name)
                    return None

            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                cards = [card for card in pool.map(card_of, self._records(client, bucket, prefix)) if card]
                videos = len(cards)
                missing = [
                    card
                    for uri, model_id in _manifests(self.manifest)
                    for card in cards_without_video(read_whole(blob_at(uri)), model_id)
                ]
                if len(missing) > self.max_videos:
                    self.log.warning("%d images have no video; %d are shown.", len(missing), self.max_videos)
                cards += pool.map(add_picture, missing[: self.max_videos])
            title = self.title or posixpath.join(bucket, prefix)
            self._write(client, bucket, name, render_contact_sheet(cards, title=title))
        self.link_state = LinkState(landed=(bucket, name))
        self.log.info("Wrote gs://%s/%s with %d videos.", bucket, name, videos)
        return {"uri": f"gs://{bucket}/{name}", "videos": videos}

    def _write(self, client: storage.Client, bucket: str, name: str, page: str) -> None:
        from airflow_provider_wan.hooks.gcs import storage_errors, upload

        blob = client.bucket(bucket).blob(name)
        blob.cache_control = "no-cache"
        with storage_errors(f"Writing gs://{bucket}/{name}"):
            upload(blob, page.encode(), content_type="text/html; charset=utf-8")

    def _add_picture(self, client: storage.Client) -> Callable[[Card], Card]:
        """Return a function that adds a small picture of its source image to a card."""
        from airflow_provider_wan.gallery.media import Access, Media, read_image, thumbnail_of
        from airflow_provider_wan.gallery.pages import with_thumbnail

        media = Media(client)
        allow_private = self.thumbnails and Access(self.wan_conn_id, None, None).reads_private_images()

        def add(card: Card) -> Card:
            if not self.thumbnails or not card.image:
                return card
            try:
                data = read_image(card.image, lambda: media, allow_private=allow_private)
                return with_thumbnail(card, thumbnail_of(data, name=card.image))
            except WanError as error:  # the video is shown without its image
                self.log.info("No picture of %s: %s", card.image, error)
                return card

        return add

    def _records(self, client: storage.Client, bucket: str, prefix: str) -> list[storage.Blob]:
        """Find the records next to videos: those that the landing marked with their request."""
        from airflow_provider_wan.hooks.gcs import call_limits, storage_errors
        from airflow_provider_wan.landing.landing import META_REQUEST

        with storage_errors(f"Listing gs://{bucket}/{prefix}"):
            found = [
                blob
                for blob in client.list_blobs(bucket, prefix=f"{prefix}/" if prefix else None, **call_limits())
                if blob.name.endswith(".json") and (blob.metadata or {}).get(META_REQUEST)
            ]
        found.sort(key=lambda blob: blob.time_created, reverse=True)
        if len(found) > self.max_videos:
            self.log.warning("Found %d videos; the newest %d are shown.", len(found), self.max_videos)
        return found[: self.max_videos]


def _manifests(given: Any) -> list[tuple[str, str | None]]:
    """Return the addresses of manifests, given in any form, each with its model where that is known."""
    if given is None or (isinstance(given, str) and given.strip() in ("", "None")):
        return []
    if isinstance(given, str):
        return [(given.strip(), None)]
    if isinstance(given, Mapping):
        return [(str(given["manifest"]), given.get("model_id"))] if given.get("manifest") else []
    return [manifest for item in given for manifest in _manifests(item)]
