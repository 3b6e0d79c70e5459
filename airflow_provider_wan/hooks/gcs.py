# SPDX-License-Identifier: Apache-2.0
"""The Cloud Storage client, and the meaning of its errors."""

from __future__ import annotations

import io
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from airflow_provider_wan.model_api.bodies import clean_text

if TYPE_CHECKING:
    from google.cloud import storage

#: (connect, read) of each call to Cloud Storage, in seconds.
TIMEOUT_S = (10.0, 60.0)
#: For how long one call is retried, in seconds; each retry backs off.
RETRY_FOR_S = 120.0
#: The metadata key of every object that belongs to a landed video: the id of its request.
META_REQUEST = "wan-request-id"
_LOG_EVERY_S = 60.0
_LOG = logging.getLogger(__name__)
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def storage_client(
    gcp_conn_id: str | None = None,
    impersonation_chain: str | Sequence[str] | None = None,
    *,
    pool_size: int = 10,
) -> storage.Client:
    """Return a Cloud Storage client.

    :param gcp_conn_id: a Google Cloud connection, which needs the extra ``[google]`` of this package;
        None (default): Application Default Credentials. ``STORAGE_EMULATOR_HOST`` is honoured by both.
    :param impersonation_chain: a service account to act as, or a chain of delegates that ends in it.
    :param pool_size: connections kept open.
    :raises WanInputError: ``gcp_conn_id`` is given, and the Google provider is not installed.
    :raises WanStorageError: there are no credentials.
    """
    if gcp_conn_id is not None:
        client = _client_of_connection(gcp_conn_id, impersonation_chain)
    else:
        from google.cloud import storage

        with storage_errors("Finding Google credentials"):  # their message has an address, which stays
            client = storage.Client(project=None, credentials=_impersonated(impersonation_chain))
    _bound(client, pool_size)
    _stop_asking_about_buckets(client)
    return client


def _client_of_connection(gcp_conn_id: str, chain: str | Sequence[str] | None) -> storage.Client:
    try:
        from airflow.providers.google.cloud.hooks.gcs import GCSHook
    except ImportError as error:
        raise WanInputError(
            f"gcp_conn_id={gcp_conn_id!r} needs Airflow's Google provider: install "
            "airflow-provider-wan[google], or leave gcp_conn_id out to use Application Default Credentials."
        ) from error
    return GCSHook(gcp_conn_id=gcp_conn_id, impersonation_chain=chain).get_conn()


def _impersonated(chain: str | Sequence[str] | None) -> Any:
    if not chain:
        return None
    import google.auth
    from google.auth import impersonated_credentials

    accounts = [chain] if isinstance(chain, str) else list(chain)
    source, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    return impersonated_credentials.Credentials(
        source_credentials=source,
        target_principal=accounts[-1],
        delegates=accounts[:-1],
        target_scopes=list(_SCOPES),
    )


def _bound(client: storage.Client, pool_size: int) -> None:
    """Put our transport under the client, unless something (mutual TLS) has put one there already."""
    from requests.adapters import HTTPAdapter

    from airflow_provider_wan.http.transport import BoundedAdapter, environment_of

    session = client._http
    session.proxies, session.verify = environment_of(client.api_endpoint)
    session.trust_env = False  # also since a .netrc would replace the credentials
    for scheme in ("http://", "https://"):
        if type(session.adapters.get(scheme)) is HTTPAdapter:
            session.mount(scheme, BoundedAdapter(pool_size=pool_size))


def _stop_asking_about_buckets(client: storage.Client) -> None:
    """Keep the client from asking for each bucket's metadata on the side.

    From 3.17 on it does so in a thread, for attributes of trace spans, even without tracing. Nothing
    fails for those who may not read a bucket (``roles/storage.objectUser``), but each client leaves a refusal
    in their audit log, and while the bucket is out each call starts another thread that retries for two minutes.
    """
    if hasattr(client, "_bucket_metadata_cache"):
        client._bucket_metadata_cache = None


def call_limits(
    retry_for_s: float | None = None, *, timeout_s: float | tuple[float, float] = TIMEOUT_S
) -> dict[str, Any]:
    """Return the arguments ``timeout`` and ``retry`` of a call of the client.

    It is retried by Cloud Storage's own policy (429, 5xx, cut connections), and an outage is logged once a minute.

    :param retry_for_s: for how long, in seconds; default: ``RETRY_FOR_S``.
    :param timeout_s: of each try, default ``TIMEOUT_S``.
    """
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY

    for_s = RETRY_FOR_S if retry_for_s is None else retry_for_s
    logged_at = -math.inf

    def log_once_a_minute(error: Exception) -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at >= _LOG_EVERY_S:
            logged_at = time.monotonic()
            _LOG.warning("Cloud Storage has no usable answer (%s) Trying again for up to %.0f s.", _said(error), for_s)

    retry = Retry(predicate=DEFAULT_RETRY._predicate, timeout=for_s, on_error=log_once_a_minute)
    return {"timeout": timeout_s, "retry": retry}


def upload(
    blob: storage.Blob,
    body: bytes | IO[bytes],
    *,
    content_type: str,
    size_bytes: int | None = None,
    if_generation_match: int | None = None,
    retry_for_s: float | None = None,
) -> None:
    """Write an object; the blob has the properties of the written one afterwards.

    :param blob: with the metadata that the object gets.
    :param body: the whole object; a file is read from its beginning. Cloud Storage checks its checksum.
    :param size_bytes: the size of a file; default: that of ``body``, which is bytes.
    :param if_generation_match: the generation that it replaces; 0: none may exist; None (default): any.
    :param retry_for_s: see :func:`call_limits`.
    :raises google.api_core.exceptions.GoogleAPICallError: the bucket refused.
    """
    blob.upload_from_file(
        io.BytesIO(body) if isinstance(body, bytes) else body,
        rewind=True,
        size=len(body) if isinstance(body, bytes) else size_bytes,
        content_type=content_type,
        if_generation_match=if_generation_match,
        checksum="crc32c",
        **call_limits(retry_for_s),
    )


@contextmanager
def storage_errors(what: str, *, request_id: str | None = None, advice: str = "") -> Iterator[None]:
    """Turn the client's errors into :class:`WanStorageError`, which names the failed operation.

    A missing bucket and a missing permission are final: only a person can help.

    :param what: the operation, such as ``"Writing gs://bucket/name"``.
    :param request_id: for which request.
    :param advice: further advice, besides that for the kind of error.
    """
    import requests
    from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError, Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        yield
    except (Forbidden, Unauthorized) as error:
        raise WanStorageError(
            f"{what} is not allowed: {_said(error)} The credentials need roles/storage.objectUser on the bucket."
            f"{advice}",
            request_id=request_id,
            retry_helps=_is_rate_limit(error),
        ) from error
    except NotFound as error:
        raise WanStorageError(
            f"{what} failed: no such bucket or object. {_said(error)} Check the names.{advice}",
            request_id=request_id,
            retry_helps="bucket does not exist" not in _said(error),
        ) from error
    except (
        GoogleAPICallError,
        RetryError,
        GoogleAuthError,
        InvalidResponse,
        DataCorruption,
        requests.RequestException,
        OSError,
    ) as error:
        raise WanStorageError(f"{what} failed: {_said(error)}{advice}", request_id=request_id) from error


def _is_rate_limit(error: Any) -> bool:
    """Return whether a 403 says "too often" and not "never" (Cloud Storage's error reasons)."""
    reasons = [str(detail.get("reason", "")) for detail in error.errors if isinstance(detail, dict)]
    return any("LimitExceeded" in reason or "quotaExceeded" in reason for reason in reasons)


def _said(error: Exception) -> str:
    """Return the message of Cloud Storage as one sentence; the client's text contains the whole answer."""
    from google.auth.exceptions import GoogleAuthError

    try:
        text = str(error.response.json()["error"]["message"])  # type: ignore[attr-defined]
    except (AttributeError, LookupError, TypeError, ValueError):
        text = str(error)
    if not isinstance(error, GoogleAuthError):  # its address is of a help page; others are of the call, with signatures
        text = re.sub(r"https?://\S+", "", text)
    lines = text.strip().splitlines()
    return clean_text(lines[0] if lines else type(error).__name__).rstrip(".") + "."


def split_gs_uri(uri: str, *, name: str, needs_object: bool = False) -> tuple[str, str]:
    """Split ``gs://bucket/path`` into bucket and path.

    :param name: of the parameter, for the message.
    :param needs_object: whether a bare bucket is refused.
    :raises WanInputError: it is not such an address.
    """
    bucket, _, path = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not _BUCKET.fullmatch(bucket) or (needs_object and not path):
        shape = "gs://bucket/path" if needs_object else "gs://bucket or gs://bucket/prefix"
        raise WanInputError(f"{name}={uri!r} is not an address of the form {shape}.")
    check_object_name(path, name=name) if path else None
    return bucket, path


def check_object_name(object_name: str, *, name: str = "object_name") -> str:
    """Return an object name if an object may have it.

    Source of the rules: Cloud Storage's object naming requirements; ``..`` as a part of the path is refused
    besides, because downloading a folder of such objects would write outside of it.

    :raises WanInputError: it is empty, too long (1024 bytes of UTF-8), holds control characters, or has
        ``.`` or ``..`` as a part, or starts with ``/`` or ``.well-known/acme-challenge/``.
    """
    problem = None
    try:
        size = len(object_name.encode())
    except UnicodeEncodeError:
        size, problem = 0, "is not valid Unicode"
    if not object_name.strip():
        problem = "is empty"
    elif size > 1024:
        problem = f"is {size} bytes long; the limit is 1024"
    elif any(ord(c) < 32 or 127 <= ord(c) < 160 for c in object_name):
        problem = "holds control characters"
    elif any(part in (".", "..") for part in object_name.split("/")):
        problem = "has '.' or '..' as a part of its path"
    elif object_name.startswith(("/", ".well-known/acme-challenge/")):
        problem = f"starts with {object_name.split('/')[0] + '/'!r}"
    if problem:
        raise WanInputError(f"{name}={object_name[:200]!r} {problem}.")
    return object_name
