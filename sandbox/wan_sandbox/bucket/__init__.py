# SPDX-License-Identifier: Apache-2.0
"""An emulator of Google Cloud Storage's JSON API."""
