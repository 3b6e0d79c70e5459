# SPDX-License-Identifier: Apache-2.0
"""How large an environment is with Airflow alone, with this provider, and with its sandbox.

Builds a virtual environment in a temporary directory, with the versions of ``constraints.txt``, and installs one
after the other into it: ``python benchmarks/installed_size.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    ("Airflow alone", ["apache-airflow"]),
    ("with airflow-provider-wan", [f"{ROOT}"]),
    ("with airflow-provider-wan[sandbox]", [f"{ROOT / 'sandbox'}", f"{ROOT}[sandbox]"]),
)


def size_mb(directory: Path) -> float:
    """Space on disk, as ``du`` counts it: whole blocks, each file once."""
    seen: dict[int, int] = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            about = os.lstat(os.path.join(folder, name))
            seen[about.st_ino] = about.st_blocks * 512
    return sum(seen.values()) / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        venv = Path(temporary) / "venv"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        install = [venv / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        for what, requirements in STEPS:
            subprocess.run([*install, *requirements], check=True, stderr=subprocess.DEVNULL)
            print(f"{what:<36} {size_mb(venv):6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
