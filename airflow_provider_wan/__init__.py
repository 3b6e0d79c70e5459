# SPDX-License-Identifier: Apache-2.0
"""Airflow provider that turns images into videos with RunComfy's Model API and lands them in a bucket."""

from __future__ import annotations

#: The one place of the version: the distribution takes it from here.
__version__ = "0.1.0"
