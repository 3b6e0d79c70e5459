# SPDX-License-Identifier: Apache-2.0
"""Connections: the Model API over a socket, and Cloud Storage."""
