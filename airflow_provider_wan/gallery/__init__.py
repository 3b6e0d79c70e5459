# SPDX-License-Identifier: Apache-2.0
"""The videos of a run as a page: a tab in Airflow, or a file next to the videos."""
