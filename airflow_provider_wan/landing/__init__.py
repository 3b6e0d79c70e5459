# SPDX-License-Identifier: Apache-2.0
"""Copying finished videos into Google Cloud Storage, verified."""
