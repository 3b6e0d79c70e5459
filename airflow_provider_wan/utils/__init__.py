# SPDX-License-Identifier: Apache-2.0
"""Code that operators, sensors, transfers and triggers share. Light to import: DAG files import it."""
