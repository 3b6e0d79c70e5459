# SPDX-License-Identifier: Apache-2.0
"""Paying once: records, claims, and the order around the call that costs money."""
