# SPDX-License-Identifier: Apache-2.0
"""The page of permissions, its shell commands and its Terraform file grant the same roles."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROLE = re.compile(r"roles/(?:storage|iam)\.\w+")


def test_page_commands_and_terraform_name_the_same_roles() -> None:
    table = [line for line in (DOCS / "permissions.md").read_text(encoding="utf-8").splitlines() if "| `roles/" in line]
    roles = {role for line in table for role in ROLE.findall(line)}
    assert len(roles) == 3
    for name in ("grant.sh", "main.tf"):
        assert set(ROLE.findall((DOCS / "permissions" / name).read_text(encoding="utf-8"))) == roles


def test_shell_commands_bind_each_role_to_the_identity(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')
    gcloud.chmod(0o755)
    identity = "serviceAccount:airflow@p.iam.gserviceaccount.com"
    subprocess.run(
        ["sh", str(DOCS / "permissions" / "grant.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PROJECT": "p", "IDENTITY": identity},
        check=True,
    )
    calls = log.read_text().splitlines()
    assert [ROLE.search(call)[0] for call in calls if (ROLE.search(call))] == [  # type: ignore[index]
        "roles/storage.objectUser",
        "roles/storage.objectViewer",
        "roles/iam.serviceAccountTokenCreator",
    ]
    assert all(f"--member={identity}" in call for call in calls)
    assert calls[2].startswith("iam service-accounts add-iam-policy-binding airflow@p.iam.gserviceaccount.com")
