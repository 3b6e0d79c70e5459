# SPDX-License-Identifier: Apache-2.0
"""HTTP: bounded requests, address checks, downloads."""
