# SPDX-License-Identifier: Apache-2.0
"""Equal fingerprints are the same video: what counts, and what does not."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.model_api.fingerprints import canonical_url, fingerprint, take_of
from tests.model_api.model_api_replies import MODEL, STEADY

GOOD: dict[str, Any] = {"prompt": "a cat", "img_url": "https://h.example/a.png"}


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://h.example/a.png", "https://h.example/a.png"),
        ("HTTPS://User:pw@H.Example:443/A.png#top", "https://h.example/A.png"),
        ("http://h.example:80/a", "http://h.example/a"),
        ("http://h.example:8080/a?", "http://h.example:8080/a"),
        ("https://h/a?X-Goog-Algorithm=1&X-Goog-Signature=2&generation=3", "https://h/a?generation=3"),
        ("https://h/a?v=1&x-amz-date=1&X-AMZ-Security-Token=2&w=2", "https://h/a?v=1&w=2"),
        ("https://h/a?GoogleAccessId=a&Expires=1&Signature=b%3D", "https://h/a"),
        ("https://h/a?AWSAccessKeyId=a&expires=1&signature=b", "https://h/a"),
        ("https://h/a?Key-Pair-Id=a&Policy=1&Signature=b", "https://h/a"),
        ("https://h/a?sv=1&se=2&sr=b&sp=r&st=3&sig=x&keep=1", "https://h/a?keep=1"),
        ("https://h/a?sp=2&se=1", "https://h/a?sp=2&se=1"),  # without sig these may name the image
        ("https://h/a?b=1&a=2", "https://h/a?b=1&a=2"),
        ("https://h/a?%58-Goog-Signature=1", "https://h/a"),
        ("gs://b/o?Signature=1", "gs://b/o?Signature=1"),
        ("a cat", "a cat"),
        ("http://[bad", "http://[bad"),
    ],
)
def test_canonical_url_has_no_signature(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


def test_fingerprint_is_a_stable_sha256() -> None:
    # Journals of earlier versions are found by it: a change here buys everything again.
    canonical = (
        '["wan-ai/wan-2-2/image-to-video",{"duration":5,"img_url":"https://h.example/a.png","prompt":"a cat",'
        '"prompt_extend":true,"resolution":"480P"},null,null]'
    )
    assert fingerprint(MODEL, GOOD) == hashlib.sha256(canonical.encode()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", fingerprint("acme/x", {"ü": ["\ud800"]}))


@pytest.mark.parametrize(
    "same",
    [
        GOOD | {"resolution": "480P"},
        GOOD | {"duration": 5, "prompt_extend": True},
        GOOD | {"duration": "5", "prompt_extend": "true", "seed": None, "template": ""},
        GOOD | {"img_url": "https://H.example/a.png?X-Goog-Signature=1&X-Goog-Expires=60"},
        dict(reversed(GOOD.items())),
    ],
)
def test_same_video_has_the_same_fingerprint(same: dict[str, Any]) -> None:
    assert fingerprint(MODEL, same) == fingerprint(MODEL, GOOD)


@pytest.mark.parametrize(
    "other",
    [
        GOOD | {"prompt": "a cat "},
        GOOD | {"prompt": "cafe\u0301"},
        GOOD | {"resolution": "1080P"},
        GOOD | {"prompt_extend": False},
        GOOD | {"seed": 0},
        GOOD | {"img_url": "https://h.example/b.png"},
        GOOD | {"img_url": "https://h.example/a.png?v=2"},
    ],
)
def test_other_video_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(MODEL, other) != fingerprint(MODEL, GOOD)


def test_text_is_not_normalised() -> None:
    composed, decomposed = GOOD | {"prompt": "caf\u00e9"}, GOOD | {"prompt": "cafe\u0301"}
    assert fingerprint(MODEL, composed) != fingerprint(MODEL, decomposed)


def test_model_image_and_variation_are_part_of_the_fingerprint() -> None:
    base = fingerprint(MODEL, GOOD)
    prints = {
        base,
        fingerprint("wan-ai/other", GOOD),
        fingerprint(MODEL, GOOD, "sha256:1", None),
        fingerprint(MODEL, GOOD, "sha256:2", None),
        fingerprint(MODEL, GOOD, None, "take-2"),
        fingerprint(MODEL, GOOD, None, "take-3"),
    }
    assert len(prints) == 6
    assert fingerprint(MODEL, GOOD, None, "") == base


def test_identity_of_an_image_replaces_its_url() -> None:
    elsewhere = GOOD | {"img_url": "https://elsewhere.example/copy.png"}
    without = {"prompt": "a cat"}
    assert (
        fingerprint(MODEL, GOOD, "sha256:1")
        == fingerprint(MODEL, elsewhere, "sha256:1")
        == fingerprint(MODEL, without, "sha256:1")
    )
    free, other = {"image": "https://a.example/1"}, {"image": "https://a.example/2"}
    assert fingerprint("acme/x", free, "i") != fingerprint("acme/x", other, "i")
    assert fingerprint("acme/x", free, "i", image_fields=["image"]) == fingerprint(
        "acme/x", other, "i", image_fields=["image"]
    )


SIGNING = [
    "X-Goog-Signature",
    "x-amz-credential",
    "Signature",
    "EXPIRES",
    "GoogleAccessId",
    "Policy",
    "sig",
    "Key-Pair-Id",
]
NAMES = st.text(min_size=1, max_size=8).map(lambda name: "q" + quote(name, safe=""))


@STEADY
@given(
    st.lists(st.tuples(NAMES, st.text(max_size=5)), max_size=4),
    st.lists(st.tuples(st.sampled_from(SIGNING), st.text(max_size=5)), max_size=4),
    st.randoms(use_true_random=False),
    st.permutations(list({**GOOD, "seed": 3, "resolution": "1080P"}.items())),
)
def test_signature_and_order_of_fields_are_not_part_of_the_fingerprint(
    own: list[tuple[str, str]], signing: list[tuple[str, str]], chance: Any, fields: list[tuple[str, Any]]
) -> None:
    def url(pairs: list[tuple[str, str]]) -> str:
        return "https://h.example/a.png?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)

    signed = list(own)
    for pair in signing:
        signed.insert(chance.randint(0, len(signed)), pair)
    assert canonical_url(url(signed)) == canonical_url(url(own))
    plain = {**GOOD, "seed": 3, "resolution": "1080P", "img_url": url(own)}
    assert fingerprint(MODEL, {**dict(fields), "img_url": url(signed)}) == fingerprint(MODEL, plain)


@STEADY
@given(st.text())
def test_canonical_url_is_idempotent(text: str) -> None:
    for url in (text, "https://h.example/" + text):
        assert canonical_url(canonical_url(url)) == canonical_url(url)


def test_a_take_depends_on_the_first_fingerprint_and_its_number_alone() -> None:
    variation, name = take_of("a" * 64, 2)
    assert variation == f"take 2 of {'a' * 64}"
    # Journals of users hold such records: this must never change.
    assert name == "4250d4a68d89b6d4ca59eee7492f4099c9ca2783862e48b93fa73644b352dc09"
    assert len({take_of(first, number)[1] for first in ("a" * 64, "b" * 64) for number in (2, 3)}) == 4
