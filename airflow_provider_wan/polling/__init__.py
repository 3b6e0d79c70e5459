# SPDX-License-Identifier: Apache-2.0
"""Waiting for requests: when to poll which request, and what each answer means."""
