# SPDX-License-Identifier: Apache-2.0
"""Many images concurrently: in order, few in memory, and without one bad image affecting the others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.images.codecs import UnusableImageError
from airflow_provider_wan.images.preparation import map_in_order
from airflow_provider_wan.images.prepare import PreparedFile, prepare
from airflow_provider_wan.model_api.schema import ImageRules, Model
from tests import image_samples as samples

(FOUND,) = Model.bundled("wan-ai/wan-2-2/image-to-video").images
assert FOUND is not None
RULES: ImageRules = FOUND


def _vanished() -> bytes:
    raise WanDownloadError("gs://shoes/gone.jpg is not there any more.")


def _prepared(source: tuple[str, Any]) -> PreparedFile:
    name, data = source
    return prepare(data() if callable(data) else data, rules=RULES, name=name)


def test_each_source_gives_its_image_or_its_own_error_in_order() -> None:
    photo = samples.encoded(samples.photo(2400, 1600), "JPEG")
    sources: list[tuple[str, Any]] = [
        ("big.jpg", photo),
        ("page.jpg", samples.HTML),
        ("coffee", (samples.PHOTOS / "coffee.jpg").read_bytes()),
        ("gone", _vanished),
        ("cut.jpg", photo[:9000]),
        ("late", lambda: photo),
    ]

    results = list(map_in_order(_prepared, sources, workers=2))

    assert [item for item, _ in results] == sources
    kinds = [type(result) for _, result in results]
    assert kinds == [
        PreparedFile,
        WanInputError,
        PreparedFile,
        WanDownloadError,
        UnusableImageError,
        PreparedFile,
    ]


def test_threads_give_the_same_bytes_as_one_call() -> None:
    photos = [samples.encoded(samples.photo(2000 + 100 * n, 1500), "JPEG") for n in range(6)]
    alone = [prepare(data, rules=RULES).sha256 for data in photos]
    together = [
        result.sha256
        for _, result in map_in_order(partial(prepare, rules=RULES), photos, workers=4)
        if isinstance(result, PreparedFile)
    ]
    assert together == alone


def test_sources_are_taken_only_as_fast_as_results_are() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_in_order(lambda number: number * 2, endless(), workers=3)
    assert [next(results) for _ in range(5)] == [(number, number * 2) for number in range(1, 6)]
    results.close()  # type: ignore[attr-defined]
    assert taken <= 5 + 2 * 3


def test_unexpected_error_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda number: 1 // number, [1, 0, 1]))
