# SPDX-License-Identifier: Apache-2.0
"""A local RunComfy Model API and a local bucket, to build and test DAGs for free. Start it with ``wan-sandbox``."""

from __future__ import annotations

#: Always equal to the version of ``airflow-provider-wan``.
__version__ = "0.1.0"
