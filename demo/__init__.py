# SPDX-License-Identifier: Apache-2.0
"""A local Airflow, started and stopped by plain Python: for ``make demo`` and for the live tests."""
