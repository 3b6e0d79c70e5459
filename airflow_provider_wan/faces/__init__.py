# SPDX-License-Identifier: Apache-2.0
"""What operators, sensors, transfers and triggers share. Light to import: DAG files import it."""
