# SPDX-License-Identifier: Apache-2.0
"""The identity of a video: equal fingerprints are the same video, which is bought once."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from airflow_provider_wan.model_api.coercion import coerce_fields
from airflow_provider_wan.model_api.outputs import is_http_url
from airflow_provider_wan.model_api.schema import load_schema

_SIGNING_PREFIXES = ("x-goog-", "x-amz-", "x-oss-")
_SIGNING_NAMES = frozenset((
    "signature", "expires", "googleaccessid", "awsaccesskeyid", "ossaccesskeyid", "key-pair-id", "policy",
    "security-token", "sig",
))  # fmt: skip
# Azure's names are so short that another service may use one to name an image: they count only with `sig`.
_BESIDE_SIG = frozenset((
    "se", "sp", "sr", "ss", "st", "sv", "sdd", "ses", "sip", "spr", "srt", "ske", "sks", "skt", "skv", "skoid",
    "sktid", "saoid", "suoid", "scid",
))  # fmt: skip
_SECRET_NAMES = ("signature", "sig", "token", "policy")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_AFTER_HOST = re.compile(r"(?i)(https?://[^/?#]*)(.*)", re.DOTALL)


def encoded_url(url: str) -> str:
    """Return the address of an image with raw blanks and non-ASCII characters percent-encoded.

    ``https://x/Küche 1.jpg`` and ``https://x/K%C3%BCche%201.jpg`` are one object. Existing escapes and the host stay as
    they are; invisible characters stay, so that validation refuses and names them. Anything that is not an ``http`` or
    ``https`` URL is returned as it is.
    """
    parts = _AFTER_HOST.fullmatch(url.strip(" "))
    if parts is None or (url.isascii() and " " not in url):
        return url
    return parts[1] + "".join(
        quote(char) if char == " " or (char > "~" and char.isprintable()) else char for char in parts[2]
    )


def invisible_character(url: str) -> str | None:
    """Name the first control or invisible character of a URL, or a blank in its host, None if it has none."""
    for char in url:
        if char.isspace() or not char.isprintable():
            return f"{unicodedata.name(char, 'a control character')} (U+{ord(char):04X})"
    return None


def canonical_url(url: str) -> str:
    """Return a URL without its signature: the same object has the same one however often it is signed.

    Known signing parameters, the fragment, credentials and a default port are removed, in any letter case; scheme and
    host are lowercased. The other parameters stay, in their order. Anything that is not an ``http`` or ``https`` URL is
    returned as it is.
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
            name in _SIGNING_NAMES or name.startswith(_SIGNING_PREFIXES) or (name in _BESIDE_SIG and "sig" in names)
        )
    ]
    return urlunsplit((parts.scheme, host, parts.path, "&".join(kept), ""))


def signatures_in(url: str) -> list[str]:
    """Return the values of the signatures in an ``http`` or ``https`` URL; anything else has none."""
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
    """Return the sha256 (hex) of the canonical JSON of model, inputs, source image and variation.

    For a model with a schema, inputs are coerced and defaults filled in first (only here; defaults are not sent), so
    that leaving a field out and giving its default is the same video. URLs count without their signatures. Text is not
    normalised.

    :param inputs: the inputs that are sent.
    :param image_identity: identifies the source image, such as its content hash, and replaces the image fields.
        ``None`` (default): their URLs are the identity.
    :param variation: a string of the user's that is never sent; another one is another video. Empty counts as None.
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


def take_of(first: str, number: int) -> tuple[str, str]:
    """Return variation and fingerprint of another take of a video.

    They depend on nothing else, so that every later try finds the take, whatever the model's page says by then.

    :param first: fingerprint of the first take.
    :param number: of the take, from 2.
    """
    variation = f"take {number} of {first}"
    return variation, hashlib.sha256(variation.encode()).hexdigest()


def without_signatures(value: Any) -> Any:
    """Return inputs, or any JSON value, as they may be recorded: every URL in them without its signature."""
    if isinstance(value, str):
        return canonical_url(value)
    if isinstance(value, Mapping):
        return {str(key): without_signatures(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_signatures(item) for item in value]
    return value
