# SPDX-License-Identifier: Apache-2.0
"""Prepared copies in a bucket, and links under which RunComfy, which reads anonymously, can read an object.

A copy is named by the content of its source and the options of its preparation. A second run finds it with one listing
call, and reads and writes nothing. An image that fits as it is gets no copy but an empty object next to the copies, a
mark that records the same about it.

A link is made immediately before a purchase, for that one call: anyone who has it can read the object, so it enters no
fingerprint, record, log or XCom.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import (
    call_limits,
    check_object_name,
    split_gs_uri,
    storage_errors,
    upload,
)
from airflow_provider_wan.images.prepare import RECIPE_VERSION, PreparedFile, TooSmall, parse_background
from airflow_provider_wan.images.readers import ImageReader
from airflow_provider_wan.images.rows import PreparedImage

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.model_api.schema import ImageRules

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp"}
_MARK = "asis"
_META = "wan-prepared"

#: The longest life of a V4 signed URL, in seconds (Cloud Storage, "Signed URLs").
LONGEST_WITH_KEY_S = 7 * 24 * 3600
#: IAM signs with a key of Google's that is only sure to be valid for so long (IAM Credentials, signBlob).
LONGEST_THROUGH_IAM_S = 12 * 3600
#: Fits both kinds of signing, and a long queue.
DEFAULT_LIFETIME_S = float(LONGEST_THROUGH_IAM_S)
_IAM_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


def copy_key(identity: str, rules: ImageRules, *, background: str, too_small: TooSmall) -> str:
    """Return the name of the prepared copy of a source, by its identity; equal names are equal bytes."""
    recipe = [
        RECIPE_VERSION,
        list(rules.formats),
        rules.alpha,
        rules.min_side_px,
        rules.max_side_px,
        rules.max_size_bytes_exclusive,
        list(parse_background(background)),
        too_small,
    ]
    if rules.min_aspect is not None or rules.max_aspect is not None:  # the names of Wan 2.2's copies stay
        recipe.append([rules.min_aspect, rules.max_aspect])
    return hashlib.sha256(json.dumps([identity, recipe]).encode()).hexdigest()


class Staging:
    """The place of prepared copies, each under its :func:`copy_key`.

    :param uri: ``gs://bucket/prefix``.
    """

    def __init__(self, client: storage.Client, uri: str) -> None:
        self._bucket, prefix = split_gs_uri(uri, name="staging")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client
        check_object_name(f"{self._prefix}x", name="staging")

    def find(self, key: str, source: ImageReader) -> PreparedImage | None:
        """Return the result of an earlier preparation, or None.

        :raises WanStorageError: the bucket cannot be reached.
        """
        name = self._name(key)
        with storage_errors(f"Looking for a staged copy in gs://{self._bucket}/{self._prefix}".rstrip("/")):
            blobs = self._client.list_blobs(self._bucket, prefix=f"{name}.", max_results=4, **call_limits())
            found = (_read(blob, source) for blob in blobs)
            return next((each for each in found if each is not None), None)

    def put(self, key: str, source: ImageReader, prepared: PreparedFile) -> PreparedImage:
        """Write a copy, or the mark of an unchanged image; an existing object stays as it is.

        :raises WanStorageError: it cannot be written.
        """
        from google.api_core.exceptions import PreconditionFailed

        is_copy = source.needs_copy or bool(prepared.changes)
        name = f"{self._name(key)}.{_SUFFIXES[prepared.format] if is_copy else _MARK}"
        uri = f"gs://{self._bucket}/{name}"
        about = [prepared.width, prepared.height, len(prepared.data), prepared.sha256, list(prepared.changes)]
        blob = self._client.bucket(self._bucket).blob(name)
        blob.metadata = {_META: json.dumps(about, separators=(",", ":"))}
        # A failed precondition: another task was faster, or our own acknowledgement was lost. The bytes are the same.
        with storage_errors(f"Staging {uri}"), suppress(PreconditionFailed):
            upload(
                blob,
                prepared.data if is_copy else b"",
                content_type=prepared.content_type if is_copy else "application/octet-stream",
                if_generation_match=0,
            )
        return PreparedImage(
            source.address,
            uri if is_copy else source.address,
            prepared.width,
            prepared.height,
            len(prepared.data),
            prepared.sha256,
            prepared.changes,
            source.identity,
            prepared.notes,
            is_new=True,
        )

    def _name(self, key: str) -> str:
        return f"{self._prefix}{key[:2]}/{key}"


def _read(blob: storage.Blob, source: ImageReader) -> PreparedImage | None:
    """Read what :meth:`Staging.put` wrote; None for what something else wrote, or for a mark where a copy is needed."""
    is_mark = blob.name.endswith(f".{_MARK}")
    if is_mark and source.needs_copy:
        return None
    try:
        width, height, size_bytes, sha256, changes = json.loads((blob.metadata or {})[_META])
        if not is_mark and int(blob.size) != int(size_bytes):
            return None
        return PreparedImage(
            source.address,
            source.address if is_mark else f"gs://{blob.bucket.name}/{blob.name}",
            int(width),
            int(height),
            int(size_bytes),
            str(sha256),
            tuple(changes),
            source.identity,
        )
    except (KeyError, TypeError, ValueError):
        return None


# -- links -----------------------------------------------------------------------------------------------------------


class ObjectLinks:
    """Signs links with the credentials of a Cloud Storage client: with their key, or through IAM.

    :param client: the client. Against an emulator with anonymous credentials nothing can be signed, and links
        are the emulator's plain addresses.
    :param lifetime_s: how long a link works, in seconds.
    """

    def __init__(self, client: storage.Client, *, lifetime_s: float = DEFAULT_LIFETIME_S) -> None:
        self._client = client
        self._lifetime_s = lifetime_s
        self._signer: Any = None

    def link_to(self, bucket: str, object_name: str) -> str:
        """Return a link under which anyone can read one object for a limited time.

        :raises WanInputError: the credentials can't sign, or not for that long.
        :raises WanStorageError: IAM did not sign.
        """
        what = f"Signing a link to gs://{bucket}/{object_name}"
        if _is_anonymous(self._client):
            return f"{self._endpoint}/{bucket}/{quote(object_name)}"
        check_lifetime(self._lifetime_s, through_iam=False)
        with storage_errors(what):
            signer, through_iam = self._signing()
            check_lifetime(self._lifetime_s, through_iam=through_iam)
            link: str = (
                self._client.bucket(bucket)
                .blob(object_name)
                .generate_signed_url(
                    version="v4",
                    method="GET",
                    expiration=timedelta(seconds=self._lifetime_s),
                    credentials=signer,
                    api_access_endpoint=self._endpoint,
                )
            )
            return link

    @property
    def _endpoint(self) -> str:
        return (self._client.api_endpoint or "https://storage.googleapis.com").rstrip("/")

    def _signing(self) -> tuple[Any, bool]:
        """Return the credentials that sign, and whether they sign through IAM."""
        from google.auth import impersonated_credentials
        from google.auth.credentials import Signing

        credentials = self._client._credentials
        if isinstance(credentials, impersonated_credentials.Credentials):
            return credentials, True
        if isinstance(credentials, Signing):
            return credentials, False
        if self._signer is None:
            self._signer = _signer_through_iam(credentials)
        return self._signer, True


def check_lifetime(lifetime_s: float, *, through_iam: bool) -> None:
    """Refuse a lifetime that is longer than signed links allow."""
    longest_s = LONGEST_THROUGH_IAM_S if through_iam else LONGEST_WITH_KEY_S
    if 0 < lifetime_s <= longest_s:
        return
    how = "signed through IAM" if through_iam else "signed"
    hint = " With a service account's key, or a shorter wait, it works." if through_iam else ""
    raise WanInputError(
        f"The image's link would have to work for {lifetime_s / 3600:.4g} hours, and a link {how} works for at most "
        f"{longest_s // 3600}. Nothing was bought. Shorten link_lifetime or timeout.{hint}"
    )


def _is_anonymous(client: storage.Client) -> bool:
    from google.auth.credentials import AnonymousCredentials

    if not isinstance(client._credentials, AnonymousCredentials):
        return False
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return True
    raise WanInputError(
        "There are no Google credentials here, so no link to the image can be signed. Nothing was bought. Set "
        "GOOGLE_APPLICATION_CREDENTIALS or gcp_conn_id, or give an https:// address that is public."
    )


def _signer_through_iam(credentials: Any) -> Any:
    """Return credentials that sign through IAM as the service account of these credentials."""
    from google.auth import iam
    from google.auth.transport.requests import Request
    from google.oauth2 import service_account

    request = Request()
    if not hasattr(credentials, "service_account_email"):
        raise _cannot_sign()
    if hasattr(credentials, "with_scopes"):  # those of a storage client are for storage alone
        credentials = credentials.with_scopes(_IAM_SCOPES)
    credentials.refresh(request)  # only then a machine's credentials know their account
    email = credentials.service_account_email
    if not email or email == "default":
        raise _cannot_sign()
    return service_account.Credentials(
        signer=iam.Signer(request, credentials, email),
        service_account_email=email,
        token_uri="https://oauth2.googleapis.com/token",
    )


def _cannot_sign() -> WanInputError:
    return WanInputError(
        "These Google credentials are no service account's, and only a service account can sign a link to the image. "
        "Nothing was bought. Give impersonation_chain= a service account that may read the image (it needs "
        "roles/iam.serviceAccountTokenCreator for whoever runs this), or an https:// address that is public."
    )
