# SPDX-License-Identifier: Apache-2.0
"""What the provider says of itself to Airflow and to its registry names things that exist."""

from __future__ import annotations

import importlib
import re

from airflow_provider_wan.get_provider_info import get_provider_info

from .conftest import ROOT


def test_how_to_guides_are_pages_of_the_documentation() -> None:
    guides = get_provider_info()["integrations"][0]["how-to-guide"]
    assert guides
    assert [guide for guide in guides if not (ROOT / guide.lstrip("/")).is_file()] == []


def test_the_registry_lists_every_class_of_the_provider_info() -> None:
    text = (ROOT / ".airflow-registry.yaml").read_text(encoding="utf-8")
    listed = re.findall(r"module: (\S+)\.(\w+)$", text, re.MULTILINE)
    assert [f"{module}.{name}" for module, name in listed if not hasattr(importlib.import_module(module), name)] == []
    info = get_provider_info()
    kinds = [*info["operators"], *info["sensors"], *info["triggers"], *info["hooks"]]
    modules = {module for kind in kinds for module in kind["python-modules"]}
    modules |= {transfer["python-module"] for transfer in info["transfers"]}
    modules.remove("airflow_provider_wan.triggers.wan_batch")  # the public address of its class is in triggers.wan
    assert {module for module, _ in listed} == modules
