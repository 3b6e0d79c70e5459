# SPDX-License-Identifier: Apache-2.0
"""Images in: tell what they are, find what breaks a rule, and make them fit. Pillow, and no Airflow."""
