# SPDX-License-Identifier: Apache-2.0
"""``python -m airflow_provider_wan``: the commands of ``airflow wan``, for an Airflow that does not load them."""

from __future__ import annotations

from airflow_provider_wan.cli import main

if __name__ == "__main__":
    main()
