# SPDX-License-Identifier: Apache-2.0
"""The documentation page of the sandbox names every option, fault and ledger key."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from wan_sandbox import cli
from wan_sandbox.server import Sandbox
from wan_sandbox.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))


def test_the_page_names_every_fault_and_parameter(sandbox: Sandbox) -> None:
    kinds = sandbox.control("fault-kinds")["kinds"]
    named = {kind["fault"] for kind in kinds} | {name for kind in kinds for name in kind["params"]}
    assert sorted(named - WORDS) == []


def test_the_page_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--check-images"}
    assert sorted(option for option in options if option not in PAGE) == []


def test_command_line_accepts_every_setting() -> None:
    options = vars(cli.parser().parse_args([]))
    assert {field.name for field in fields(Settings)} == set(options) - {"state_file"}


def test_page_names_every_key_of_the_ledger(sandbox: Sandbox) -> None:
    missing = set(sandbox.ledger()) - WORDS - {"purchases_count"}
    assert missing == set()
