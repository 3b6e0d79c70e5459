# SPDX-License-Identifier: Apache-2.0
"""What this provider adds to Airflow's UI."""
