# SPDX-License-Identifier: Apache-2.0
"""The provider info and the registry file name exactly the public classes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import airflow_provider_wan
from airflow_provider_wan.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "airflow_provider_wan"
AIRFLOW_ROOMS = ("operators", "sensors", "triggers", "transfers")


def provider_info_modules() -> Iterator[str]:
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            yield from entry["python-modules"]
    for entry in info["transfers"]:
        yield entry["python-module"]


def registered() -> list[dict[str, str]]:
    registry = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text(encoding="utf-8"))
    return [entry for value in registry.values() if isinstance(value, list) for entry in value]


def airflow_modules() -> list[str]:
    """Modules that define an operator, a sensor, a trigger or a transfer."""
    files = [file for room in AIRFLOW_ROOMS for file in sorted((PACKAGE / room).glob("*.py"))]
    names = [f"airflow_provider_wan.{f.parent.name}.{f.stem}" for f in files if not f.stem.startswith("_")]
    return [name for name in names if public_classes(name)]


def public_classes(module_name: str) -> list[str]:
    """Operators, sensors, triggers and transfers that a module defines."""
    module = importlib.import_module(module_name)
    endings = ("Operator", "Sensor", "Trigger")
    return [
        f"{module_name}.{name}"
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module_name
        if name.startswith("Wan") and name.endswith(endings)
    ]


def test_the_package_name_is_the_name_of_the_distribution() -> None:
    name = get_provider_info()["package-name"]
    assert metadata.metadata(name)["Name"] == name == "airflow-provider-wan"
    (entry,) = [e for e in metadata.entry_points(group="apache_airflow_provider") if e.dist.name == name]
    assert entry.load() is get_provider_info


def test_the_version_is_the_one_of_the_distribution() -> None:
    assert metadata.version("airflow-provider-wan") == airflow_provider_wan.__version__


@pytest.mark.parametrize("schema_name", ["provider_info.schema.json", "provider.yaml.schema.json"])
def test_airflow_accepts_the_provider_info(schema_name: str) -> None:
    import airflow
    import jsonschema

    schema: dict[str, Any] = json.loads((Path(airflow.__path__[0]) / schema_name).read_text(encoding="utf-8"))
    info = get_provider_info()
    if schema_name.startswith("provider.yaml"):
        # That schema requires keys that only Airflow's own providers have; its rules for a connection are the
        # stricter ones, and the only ones for a form.
        schema = schema["properties"]["connection-types"]
        info = info["connection-types"]
    jsonschema.validate(info, schema)


def test_every_public_module_is_in_the_provider_info() -> None:
    assert sorted(name for name in provider_info_modules() if ".hooks." not in name) == sorted(airflow_modules())


@pytest.mark.parametrize("module", [*provider_info_modules()])
def test_every_module_of_the_provider_info_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_every_link_is_in_the_provider_info() -> None:
    from airflow_provider_wan.links import wan

    links = {f"{wan.__name__}.{name}" for name in vars(wan) if name.startswith("Wan") and name.endswith("Link")}
    assert set(get_provider_info()["extra-links"]) == links


def class_at(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def test_the_registry_names_every_public_class_once_and_nothing_else() -> None:
    # A class may be public in a module other than the one that defines it: compare classes, not paths.
    named = [class_at(entry["module"]) for entry in registered() if ".hooks." not in entry["module"]]
    assert len(set(named)) == len(named)
    assert set(named) == {class_at(name) for module in airflow_modules() for name in public_classes(module)}


@pytest.mark.parametrize("path", [entry["module"] for entry in registered()])
def test_every_class_of_the_registry_exists(path: str) -> None:
    assert isinstance(class_at(path), type)
