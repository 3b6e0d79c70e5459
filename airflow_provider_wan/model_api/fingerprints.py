# SPDX-License-Identifier: Apache-2.0
"""The identity of what is bought: equal fingerprints are the same video, and it is bought once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from airflow_provider_wan.model_api.coercion import coerce_fields
from airflow_provider_wan.model_api.outputs import is_http_url
from airflow_provider_wan.model_api.schema import load_schema

_SIGNING_PREFIXES = ("x-goog-", "x-amz-", "x-oss-")
_SIGNING_NAMES = frozenset(
    {
        "signature",
        "expires",
        "googleaccessid",
        "awsaccesskeyid",
        "ossaccesskeyid",
        "key-pair-id",
        "policy",
        "security-token",
        "sig",
    }
)
# Azure's names are so short that another service may use one to name an image: they count only beside `sig`.
_BESIDE_SIG = frozenset(
    {"se", "sp", "sr", "ss", "st", "sv", "sdd", "ses", "sip", "spr", "srt", "ske", "sks", "skt", "skv"}
)
_BESIDE_SIG |= {"skoid", "sktid", "saoid", "suoid", "scid"}
_SECRET_NAMES = ("signature", "sig", "token", "policy")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def canonical_url(url: str) -> str:
    """Give a URL less what only signs it: the same object has the same one however often it is signed.

    Known signing parameters, the fragment, credentials and a default port go, in any letter case; scheme and
    host are lowercased. The other parameters stay, in their order. What is not a URL comes back as it is.

    :param url: an ``http`` or ``https`` URL.
    """
    if not is_http_url(url):
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    host = host.removesuffix(_DEFAULT_PORTS[parts.scheme])
    pairs = parts.query.split("&") if parts.query else []
    names = [unquote(pair.partition("=")[0]).lower() for pair in pairs]
    kept = [
        pair
        for pair, name in zip(pairs, names, strict=True)
        if not (
            name in _SIGNING_NAMES
            or name.startswith(_SIGNING_PREFIXES)
            or (name in _BESIDE_SIG and "sig" in names)
        )
    ]
    return urlunsplit((parts.scheme, host, parts.path, "&".join(kept), ""))


def signatures_in(url: str) -> list[str]:
    """Give what in a URL lets whoever has it read the file: the values of its signatures, as they stand there.

    :param url: an ``http`` or ``https`` URL; anything else has none.
    """
    if not is_http_url(url):
        return []
    pairs = [pair.partition("=") for pair in urlsplit(url).query.split("&")]
    return [value for name, _, value in pairs if unquote(name).lower().endswith(_SECRET_NAMES) and value]


def fingerprint(
    model_id: str,
    inputs: Mapping[str, Any],
    image_identity: str | None = None,
    variation: str | None = None,
    *,
    image_fields: Collection[str] | None = None,
) -> str:
    """Give the sha256 (hex) of the canonical JSON of what is asked for.

    For a model with a schema, inputs are coerced first and defaults filled in (here only; they are never sent
    unless given), so that leaving a field out and giving its default is the same video. URLs count less what
    signs them. Text is taken as it is, without Unicode normalisation.

    :param model_id: the model.
    :param inputs: the inputs that are sent.
    :param image_identity: what the source image is, such as its content hash; it then stands for the image
        fields, whose URLs do not count any more. ``None`` (default): their URLs are the identity.
    :param variation: a string of the user's that is never sent; another one is another video. An empty one,
        as Jinja makes it, is none.
    :param image_fields: the fields that hold the image's URL; default those that the model's schema marks.
    """
    schema = load_schema(model_id)
    given = {name: value for name, value in inputs.items() if value is not None}
    if schema is not None:
        given = {**schema.defaults, **coerce_fields(schema, given)}
    if image_fields is None:
        image_fields = schema.image_fields if schema is not None else ()
    if image_identity is not None:
        given = {name: value for name, value in given.items() if name not in image_fields}
    identity = [model_id, without_signatures(given), image_identity, variation or None]
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def without_signatures(value: Any) -> Any:
    """Give inputs as they may be remembered: every URL in them less what signs it.

    :param value: any JSON value.
    """
    if isinstance(value, str):
        return canonical_url(value)
    if isinstance(value, Mapping):
        return {str(key): without_signatures(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_signatures(item) for item in value]
    return value
