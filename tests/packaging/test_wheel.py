# SPDX-License-Identifier: Apache-2.0
"""The built wheel: what is in it, and what Airflow makes of it in an empty environment."""

from __future__ import annotations

import json
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


def test_the_wheel_holds_types_schemas_and_licence(names: list[str]) -> None:
    assert "airflow_provider_wan/py.typed" in names
    assert any(n.startswith("airflow_provider_wan/model_api/schemas/") and n.endswith(".json") for n in names)
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_the_wheel_holds_nothing_but_the_package(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"airflow_provider_wan"}
    assert not [name for name in names if "test" in Path(name).name or name.endswith(".pyc")]


def test_airflow_lists_the_provider(installed: Installed) -> None:
    assert "airflow-provider-wan" not in installed.before.providers
    assert "airflow-provider-wan" in installed.after.providers


def test_no_other_provider_is_disturbed(installed: Installed) -> None:
    others = {name: v for name, v in installed.after.providers.items() if name != "airflow-provider-wan"}
    assert others == installed.before.providers
    forms = {name: form for name, form in installed.after.forms.items() if name != "wan"}
    assert forms == installed.before.forms


def test_airflow_gives_the_details_of_the_provider(installed: Installed) -> None:
    details = installed.airflow.airflow(
        *("providers", "get", "--full", "--output", "json", "airflow-provider-wan")
    )
    assert "airflow_provider_wan.hooks.wan.WanHook" in details
    assert "conn-fields" in details


def test_airflow_can_import_the_hook_of_the_connection_type(installed: Installed) -> None:
    printed = installed.airflow.airflow("providers", "hooks", "--output", "json")
    (row,) = [r for r in json.loads(printed[printed.index("[{") :]) if r["connection_type"] == "wan"]
    assert row["class"] == "airflow_provider_wan.hooks.wan.WanHook"
    assert row["conn_id_attribute_name"] == "wan_conn_id"
    assert row["package_name"] == "airflow-provider-wan"


def test_the_form_of_the_ui_knows_the_connection_type(installed: Installed) -> None:
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


def test_a_connection_is_added_by_type_and_by_uri(installed: Installed) -> None:
    airflow = installed.airflow
    airflow.airflow("db", "migrate")
    airflow.airflow(
        *("connections", "add", "by_type", "--conn-type", "wan", "--conn-password", "not-a-token"),
        *("--conn-host", "https://model-api.runcomfy.net", "--conn-extra", '{"requests_per_second": 2}'),
    )
    airflow.airflow(
        "connections", "add", "by_uri", "--conn-uri", "wan://:not-a-token@/?requests_per_second=2"
    )
    printed = airflow.airflow("connections", "list", "--output", "json")
    rows = {row["conn_id"]: row for row in json.loads(printed[printed.index("[{") :])}
    assert {name: rows[name]["conn_type"] for name in ("by_type", "by_uri")} == {
        "by_type": "wan",
        "by_uri": "wan",
    }
    # That the token is there is seen, the token itself is not: Airflow masks passwords.
    exported = airflow.run(airflow.python, "-c", _READ_PASSWORDS)
    assert exported.split()[-2:] == ["True", "True"]


_READ_PASSWORDS = """
from airflow.models import Connection
from airflow.utils.session import create_session
with create_session() as session:
    for name in ("by_type", "by_uri"):
        print(session.query(Connection).filter_by(conn_id=name).one().password == "not-a-token")
"""
