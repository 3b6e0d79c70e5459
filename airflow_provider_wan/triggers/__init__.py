# SPDX-License-Identifier: Apache-2.0
"""Waits in the triggerer."""
