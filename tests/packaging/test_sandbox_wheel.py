# SPDX-License-Identifier: Apache-2.0
"""The sandbox's wheel works alone, and the provider's extra ``sandbox`` pins it."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import airflow_provider_wan
import wan_sandbox

from .conftest import ROOT, uv_pip

SCHEMA = "schemas/wan-ai--wan-2-2--image-to-video.json"


@pytest.fixture(scope="module")
def environment(sandbox_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the sandbox, without the provider and without Airflow."""
    venv = tmp_path_factory.mktemp("alone") / "venv"
    uv_pip(venv, "install", "-c", ROOT / "constraints.txt", sandbox_wheel)
    return venv


def test_sandbox_wheel_contains_schema_types_and_licence_and_no_tests(sandbox_wheel: Path) -> None:
    with zipfile.ZipFile(sandbox_wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wan_sandbox"}
    assert {"wan_sandbox/py.typed", f"wan_sandbox/{SCHEMA}"} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if "test" in Path(name).name or name.endswith(".pyc")]


def test_the_program_runs_without_the_provider_and_without_airflow(environment: Path) -> None:
    installed = uv_pip(environment, "freeze")
    assert "airflow-provider-wan-sandbox" in installed
    assert not re.search(r"^(apache-airflow|airflow-provider-wan)\b(?!-sandbox)", installed, re.MULTILINE)
    command = [environment / "bin" / "wan-sandbox", "--help"]
    shown = subprocess.run(command, cwd=environment.parent, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--bucket-port" in shown.stdout


def test_sandbox_generates_videos_without_the_provider(environment: Path) -> None:
    code = (
        "from wan_sandbox.server import Sandbox\n"
        "with Sandbox(buckets=('videos',), video_bytes=50_000) as sandbox:\n"
        "    print(sandbox.bucket_control('health')['buckets'], sandbox.ledger()['purchases_count'])\n"
    )
    command = [environment / "bin" / "python", "-c", code]
    done = subprocess.run(command, cwd=environment.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['videos'] 0\n"), done.stderr


def test_both_distributions_have_one_version_and_the_extra_pins_it(wheel: Path) -> None:
    assert wan_sandbox.__version__ == airflow_provider_wan.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = f"airflow-provider-wan-sandbox=={airflow_provider_wan.__version__}"
    assert project["optional-dependencies"]["sandbox"] == [pinned, "airflow-provider-wan[video]"]
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        requires = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    of_sandbox = [line for line in requires if "wan-sandbox" in line]
    assert of_sandbox == [f"{pinned}; extra == 'sandbox'"]


def test_both_distributions_have_the_same_copy_of_the_schema() -> None:
    copies = [ROOT / "airflow_provider_wan/model_api" / SCHEMA, ROOT / "sandbox/wan_sandbox" / SCHEMA]
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_both_distributions_have_the_same_licence() -> None:
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "sandbox/LICENSE").read_bytes()
