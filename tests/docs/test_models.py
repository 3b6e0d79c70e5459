# SPDX-License-Identifier: Apache-2.0
"""The page about other models says what is tested, and what the log says."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_provider_wan.hooks.wan import WanHook
from tests.operators.test_wan_models import TABLE
from wan_sandbox.server import Sandbox

PAGE = (Path(__file__).resolve().parents[2] / "docs/howto/other-models.md").read_text(encoding="utf-8")


def test_table_of_models_is_that_of_the_tests_and_of_the_catalogue(sandbox: Sandbox) -> None:
    rows = re.findall(r"^\| `([^`]+/[^`]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    named = {model_id: re.findall(r"`(\w+)`", fields) for model_id, fields in rows}
    assert named == {model_id: fields for model_id, (fields, _) in TABLE.items()}
    catalogue = {model.model_id: list(model.image_fields) for model in WanHook().list_models()}
    assert {model_id: catalogue[model_id] for model_id in named} == named


def test_quoted_line_of_the_log_is_the_one_that_is_written(sandbox: Sandbox) -> None:
    source = (Path(__file__).resolve().parents[2] / "airflow_provider_wan/hooks/wan.py").read_text()
    written = " ".join(re.sub(r'"\s+"', "", source).split())
    quoted = " ".join(PAGE.split("```text")[1].split("```")[0].split())
    assert "Its inputs and images are sent unchecked, and a mistake may be paid for." in written
    for sentence in re.split(r"(?<=[.;]) ", quoted.partition("Try again later. ")[2]):
        assert sentence in written
