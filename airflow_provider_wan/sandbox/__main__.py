# SPDX-License-Identifier: Apache-2.0
"""``python -m airflow_provider_wan.sandbox``."""

from __future__ import annotations

import sys

from airflow_provider_wan.sandbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
