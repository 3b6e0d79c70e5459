# SPDX-License-Identifier: Apache-2.0
"""What came from what: Airflow's assets, its hook lineage, and OpenLineage where that is installed."""
