# SPDX-License-Identifier: Apache-2.0
"""Source images: inspect them, check them against a model's rules, and make them fit. Uses Pillow, not Airflow."""
