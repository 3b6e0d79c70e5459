# SPDX-License-Identifier: Apache-2.0
"""Which rules an image breaks, exactly at their limits, and whether that can be fixed."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from airflow_provider_wan.images.inspect import ImageFacts
from airflow_provider_wan.images.prepare import check, explain, fit_size
from airflow_provider_wan.model_api.schema import ImageRules, Model, load_schema

MODEL = "wan-ai/wan-2-2/image-to-video"
(FOUND,) = Model.bundled(MODEL).images
assert FOUND is not None
RULES: ImageRules = FOUND

GOOD = ImageFacts(
    name="shoe.jpg",
    format="JPEG",
    width=1200,
    height=800,
    mode="RGB",
    bits=8,
    has_alpha=False,
    orientation=1,
    is_animated=False,
    size_bytes=500_000,
    private=(),
    lossless=False,
)


def _broken(**change: object) -> list[tuple[str, object, object, bool]]:
    facts = replace(GOOD, **change)  # type: ignore[arg-type]
    return [(rule.rule, rule.value, rule.limit, rule.fixable) for rule in check(facts, RULES)]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(360, 360), (2000, 2000), (360, 2000), (2000, 360), (1200, 800)])
def test_acceptable_image_breaks_no_rule_at_the_limits_either(fmt: str, width: int, height: int) -> None:
    assert _broken(format=fmt, width=width, height=height, size_bytes=9_999_999) == []


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"width": 359}, [("min_side_px", 359, 360, True)]),
        ({"height": 359}, [("min_side_px", 359, 360, True)]),
        ({"width": 2001}, [("max_side_px", 2001, 2000, True)]),
        ({"width": 6000, "height": 4000}, [("max_side_px", 6000, 2000, True)]),
        ({"width": 1, "height": 1}, [("min_side_px", 1, 360, False)]),
        (
            {"width": 4000, "height": 300},
            [("min_side_px", 300, 360, False), ("max_side_px", 4000, 2000, False)],
        ),
        ({"width": 5000, "height": 500}, [("max_side_px", 5000, 2000, False)]),
        ({"size_bytes": 10_000_000}, [("max_size_bytes_exclusive", 10_000_000, 10_000_000, True)]),
        ({"size_bytes": 300 * 1024 * 1024}, [("max_size_bytes_exclusive", 314_572_800, 10_000_000, False)]),
        ({"size_bytes": None}, []),
        ({"format": "GIF"}, [("formats", "GIF", "JPEG, PNG, BMP, WEBP", True)]),
        ({"format": "PNG", "has_alpha": True}, [("alpha", "transparency", "none", True)]),
        (
            {"format": "TIFF", "has_alpha": True, "width": 9000, "height": 6000, "size_bytes": 60_000_000},
            [
                ("formats", "TIFF", "JPEG, PNG, BMP, WEBP", True),
                ("alpha", "transparency", "none", True),
                ("max_side_px", 9000, 2000, True),
                ("max_size_bytes_exclusive", 60_000_000, 10_000_000, True),
            ],
        ),
    ],
)
def test_every_broken_rule_is_reported_with_value_and_limit(
    change: dict[str, object], broken: list[tuple[str, object, object, bool]]
) -> None:
    assert _broken(**change) == broken


def test_rule_names_are_those_of_the_schema_file() -> None:
    bad = replace(GOOD, format="GIF", has_alpha=True, width=4000, height=300, size_bytes=20_000_000)
    schema = load_schema(MODEL)
    assert schema is not None
    names = schema.fields["img_url"]["x-image"]
    assert [rule.rule for rule in check(bad, RULES)] == list(names)


def test_a_small_image_is_not_fixable_where_enlarging_is_off() -> None:
    small = replace(GOOD, width=300)
    assert [rule.fixable for rule in check(small, RULES, too_small="reject")] == [False]


def test_heic_is_fixable_only_with_its_extra_and_the_message_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heic = replace(GOOD, format="HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (rule,) = check(heic, RULES)
    assert not rule.fixable
    assert "airflow-provider-wan[heif]" in rule.message


def test_explanation_names_the_image_every_rule_and_the_remedy() -> None:
    big = replace(GOOD, format="GIF", width=4000, height=3000)
    text = explain(big, check(big, RULES))
    assert text == (
        "shoe.jpg would be refused: it is GIF, the model takes JPEG, PNG, BMP, WEBP; it is 4000x3000 px, a side may "
        "have at most 2000 px. Nothing was bought. It can be fixed automatically: prepare it first."
    )


def test_a_model_without_limits_takes_any_image() -> None:
    free = replace(RULES, formats=(), alpha=True, min_side_px=None, max_side_px=None, max_size_bytes_exclusive=None)
    assert check(replace(GOOD, format="GIF", has_alpha=True, width=9000, height=9), free) == ()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((360, 360), (360, 360)),
        ((2000, 2000), (2000, 2000)),
        ((2000, 360), (2000, 360)),
        ((2001, 2001), (1999, 1999)),
        ((4000, 3000), (1999, 1499)),
        ((3000, 4000), (1499, 1999)),
        ((10_000, 2_000), (1999, 400)),
        ((359, 359), (361, 361)),
        ((300, 451), (361, 543)),
        ((451, 300), (543, 361)),
        ((46, 46), (361, 361)),
        ((1999, 359), None),
        ((45, 45), None),
        ((1, 1), None),
        ((20_000, 2_000), None),
        ((3_000, 540), None),
        ((100, 600), None),
    ],
)
def test_the_nearest_size_of_the_same_aspect_is_strictly_inside(
    size: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    fit = fit_size(*size, rules=RULES)
    assert (None if isinstance(fit, str) else fit) == expected


def test_any_size_that_fits_keeps_its_aspect_within_a_pixel() -> None:
    for width in range(50, 8000, 137):
        for height in range(50, 8000, 151):
            fit = fit_size(width, height, rules=RULES)
            if isinstance(fit, str):
                continue
            assert min(fit) >= 360
            assert max(fit) <= 2000
            by_width = abs(height * fit[0] / width - fit[1])
            by_height = abs(width * fit[1] / height - fit[0])
            assert min(by_width, by_height) <= 1
