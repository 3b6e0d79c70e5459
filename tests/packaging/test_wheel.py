# SPDX-License-Identifier: Apache-2.0
"""The provider's wheel: its files, and what Airflow discovers in an empty environment."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Installed


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_contains_types_schemas_and_licence(names: list[str]) -> None:
    assert "airflow_provider_wan/py.typed" in names
    assert any(n.startswith("airflow_provider_wan/model_api/schemas/") and n.endswith(".json") for n in names)
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_wheel_contains_only_the_package(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"airflow_provider_wan"}
    assert not [name for name in names if "test" in Path(name).name or name.endswith(".pyc")]


def test_wheel_contains_no_server_that_injects_faults(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sources = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    servers = (
        "aiohttp import web",
        "aiohttp.web",
        "http.server",
        "socketserver",
        "wan_sandbox",
        "/_sandbox/",
    )
    assert {name for name, source in sources.items() if any(part in source for part in servers)} == set()


def test_airflow_lists_the_provider(installed: Installed) -> None:
    assert "airflow-provider-wan" not in installed.before.providers
    assert "airflow-provider-wan" in installed.after.providers


def test_other_providers_are_unchanged(installed: Installed) -> None:
    others = {name: v for name, v in installed.after.providers.items() if name != "airflow-provider-wan"}
    assert others == installed.before.providers
    forms = {name: form for name, form in installed.after.forms.items() if name != "wan"}
    assert forms == installed.before.forms


def test_airflow_can_import_the_hook_of_the_connection_type(installed: Installed) -> None:
    row = installed.after.hooks["wan"]
    assert row["class"] == "airflow_provider_wan.hooks.wan.WanHook"
    assert row["conn_id_attribute_name"] == "wan_conn_id"
    assert row["package_name"] == "airflow-provider-wan"


def test_connection_form_lists_the_connection_type(installed: Installed) -> None:
    form = installed.after.forms["wan"]
    assert form["hook_name"] == "Wan (RunComfy)"
    standard = form["standard_fields"]
    assert standard["password"]["title"] == "API token"
    assert standard["host"]["placeholder"] == "https://model-api.runcomfy.net"
    assert [name for name, field in standard.items() if field and field["hidden"]] == [
        "url_schema",
        "port",
        "login",
    ]
    assert set(form["extra_fields"]) == {
        "account_host",
        "allow_private_images",
        "download_hosts",
        "not_found_patience",
        "requests_per_second",
        "timeout",
    }


def test_connection_can_be_added_by_type_and_by_uri(installed: Installed, airflow_db: Path, tmp_path: Path) -> None:
    airflow = installed.airflow
    shutil.copyfile(airflow_db, Path(airflow.env["AIRFLOW_HOME"]) / "airflow.db")
    extra = '{"requests_per_second": 2}'
    uri = "wan://:not-a-token@/?requests_per_second=2"
    add, exported = ("connections", "add"), tmp_path / "connections.json"
    found = airflow.airflow(
        (*add, "by_type", "--conn-type", "wan", "--conn-password", "not-a-token", "--conn-extra", extra),
        (*add, "by_uri", "--conn-uri", uri),
        ("connections", "export", str(exported)),
        ("providers", "get", "--full", "--output", "json", "airflow-provider-wan"),
    )
    details = found["answers"][-1]
    added = json.loads(exported.read_text())
    assert {added[name]["conn_type"] for name in ("by_type", "by_uri")} == {"wan"}
    assert {added[name]["password"] for name in ("by_type", "by_uri")} == {"not-a-token"}
    assert "airflow_provider_wan.hooks.wan.WanHook" in details
    assert "conn-fields" in details
