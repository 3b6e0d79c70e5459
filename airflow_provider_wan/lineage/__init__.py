# SPDX-License-Identifier: Apache-2.0
"""Lineage of videos: Airflow's assets, its hook lineage, and OpenLineage where that is installed."""
