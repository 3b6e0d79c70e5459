# SPDX-License-Identifier: Apache-2.0
"""One Airflow API server for all tests over HTTP: making it takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gallery.airflow_server import AirflowServer


@pytest.fixture(scope="session")
def airflow(airflow_db: Path) -> AirflowServer:
    """Airflow's API server with the gallery in it."""
    from tests.gallery.airflow_server import AirflowServer

    return AirflowServer()
