# SPDX-License-Identifier: Apache-2.0
"""Write a page of all videos under a prefix, beside them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.links.wan import WanBucketLink
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.link_state import LinkState

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.gallery.cards import Card

_READ_AT_ONCE = 8


class WanContactSheetOperator(BaseOperator):
    """Write ``index.html`` beside landed videos: every video with its source image, prompt, seed, model and cost.

    The page stands for itself: links are relative, pictures of the source images are in it, and it needs no script.
    So it works in a bucket viewer, on a static web site and in a downloaded folder. It is made from the records that
    :class:`WanToGCSOperator` leaves beside the videos, of this run and of earlier ones under the same prefix.

    Images of a batch that have no video are shown with the reason, where its ``manifest`` is given.

    Returns ``{"uri", "videos"}``.

    :param bucket_name: the bucket, without ``gs://``. (templated)
    :param prefix: the folder of the videos; all that lies under it is shown. Default: the whole bucket. (templated)
    :param object_name: name of the page within the prefix, default ``index.html``. (templated)
    :param manifest: of batches whose images without a video are shown too: what a ``WanBatchOperator`` returned, the
        address of its manifest, or a list of either; ``manifest=batch.output`` works, mapped or not. A batch that
        failed has returned nothing, and left the same as XCom ``summary``. (templated)
    :param title: heading of the page; default: bucket and prefix. (templated)
    :param thumbnails: whether to put small pictures of the source images into the page, about 10 kB each; default
        True. One that can't be read any more is left out.
    :param max_videos: more than that are not shown, newest first, default 1000.
    :param wan_conn_id: the connection, which says whether images may come from private addresses; default
        ``wan_default``. (templated)
    :param gcp_conn_id: a Google Cloud connection, which needs the extra ``[google]``; None (default): Application
        Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)
    """

    template_fields: Sequence[str] = (
        "bucket_name",
        "prefix",
        "object_name",
        "manifest",
        "title",
        "wan_conn_id",
        "gcp_conn_id",
        "impersonation_chain",
    )
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
        self.seen = LinkState()

    def execute(self, context: Any) -> dict[str, Any]:
        """Read the records, and write the page."""
        from airflow_provider_wan.gallery.contact_sheet import render_contact_sheet
        from airflow_provider_wan.hooks.gcs import (
            TIMEOUT_S,
            check_object_name,
            retry_policy,
            split_gs_uri,
            storage_client,
            storage_errors,
        )

        with as_airflow_errors(context):
            bucket, _ = split_gs_uri(f"gs://{self.bucket_name.removeprefix('gs://')}", name="bucket_name")
            prefix = self.prefix.strip("/")
            name = check_object_name(posixpath.join(prefix, self.object_name))
            client = storage_client(self.gcp_conn_id, self.impersonation_chain)
            cards = list(self._cards(client, bucket, prefix, name))
            videos = len(cards)
            cards += self._cards_without_video(client)
            page = render_contact_sheet(cards, title=self.title or posixpath.join(bucket, prefix))
            blob = client.bucket(bucket).blob(name)
            blob.cache_control = "no-cache"
            with storage_errors(f"Writing gs://{bucket}/{name}"):
                blob.upload_from_string(
                    page.encode(),
                    content_type="text/html; charset=utf-8",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
        self.seen = LinkState(landed=(bucket, name))
        self.log.info("Wrote gs://%s/%s with %d videos.", bucket, name, videos)
        return {"uri": f"gs://{bucket}/{name}", "videos": videos}

    def _cards(self, client: storage.Client, bucket: str, prefix: str, page: str) -> Iterator[Card]:
        from concurrent.futures import ThreadPoolExecutor

        names = self._records(client, bucket, prefix)
        allow_private = self.thumbnails and self._allows_private_images()

        def card_of(name: str) -> Card | None:
            return self._card(client, bucket, name, page=page, allow_private=allow_private)

        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            yield from (card for card in pool.map(card_of, names) if card is not None)

    def _card(
        self, client: storage.Client, bucket: str, name: str, *, page: str, allow_private: bool
    ) -> Card | None:
        from airflow_provider_wan.gallery.contact_sheet import card_of_record

        record = self._read(client, bucket, name)
        return None if record is None else self._pictured(card_of_record(record, beside=page), allow_private)

    def _pictured(self, card: Card, allow_private: bool) -> Card:
        from airflow_provider_wan.gallery.contact_sheet import with_thumbnail
        from airflow_provider_wan.gallery.thumbnails import read_image, thumbnail_of

        if not self.thumbnails or not card.image:
            return card
        try:
            image = read_image(card.image, allow_private=allow_private, gcp_conn_id=self.gcp_conn_id)
            return with_thumbnail(card, thumbnail_of(image, name=card.image))
        except WanError as error:  # an image that is gone is no reason to show no video
            self.log.info("No picture of %s: %s", card.image, error)
            return card

    def _cards_without_video(self, client: storage.Client) -> list[Card]:
        from concurrent.futures import ThreadPoolExecutor

        from airflow_provider_wan.gallery.contact_sheet import cards_without_video
        from airflow_provider_wan.hooks.gcs import split_gs_uri

        cards: list[Card] = []
        for uri in _addresses(self.manifest):
            bucket, name = split_gs_uri(uri, name="manifest", needs_object=True)
            cards += cards_without_video(self._read_lines(client, bucket, name))
        if len(cards) > self.max_videos:
            self.log.warning("%d images have no video; %d are shown.", len(cards), self.max_videos)
        allow_private = self.thumbnails and self._allows_private_images()
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            return list(pool.map(lambda card: self._pictured(card, allow_private), cards[: self.max_videos]))

    def _allows_private_images(self) -> bool:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        from airflow_provider_wan.hooks.wan import WanHook

        try:
            return WanHook(self.wan_conn_id).settings.allow_private_images
        except (AirflowNotFoundException, WanError):  # the page needs no account
            return False

    def _records(self, client: storage.Client, bucket: str, prefix: str) -> list[str]:
        """Find the records beside videos: those that the landing has marked with their request."""
        from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, storage_errors
        from airflow_provider_wan.landing.landing import META_REQUEST

        with storage_errors(f"Listing gs://{bucket}/{prefix}"):
            found = [
                blob
                for blob in client.list_blobs(
                    bucket, prefix=f"{prefix}/" if prefix else None, timeout=TIMEOUT_S, retry=retry_policy()
                )
                if blob.name.endswith(".json") and (blob.metadata or {}).get(META_REQUEST)
            ]
        found.sort(key=lambda blob: blob.time_created, reverse=True)
        if len(found) > self.max_videos:
            self.log.warning("%d videos are there; the newest %d are shown.", len(found), self.max_videos)
        return [blob.name for blob in found[: self.max_videos]]

    def _read(self, client: storage.Client, bucket: str, name: str) -> dict[str, Any] | None:
        lines = self._read_lines(client, bucket, name)
        if len(lines) != 1 or not isinstance(lines[0], dict):
            self.log.warning("gs://%s/%s is not a record; it is left out.", bucket, name)
            return None
        return lines[0]

    def _read_lines(self, client: storage.Client, bucket: str, name: str) -> list[Any]:
        """Read a file with a JSON value on each line; of one that is no such file, nothing."""
        import json

        from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, storage_errors

        with storage_errors(f"Reading gs://{bucket}/{name}"):
            body = client.bucket(bucket).blob(name).download_as_bytes(timeout=TIMEOUT_S, retry=retry_policy())
        try:
            return [json.loads(line) for line in body.splitlines()]
        except ValueError:
            return []


def _addresses(given: Any) -> list[str]:
    """Give the addresses of manifests, however they were given."""
    if given is None or (isinstance(given, str) and given.strip() in ("", "None")):
        return []
    if isinstance(given, str):
        return [given.strip()]
    if isinstance(given, Mapping):
        return [str(given["manifest"])] if given.get("manifest") else []
    return [address for one in given for address in _addresses(one)]
