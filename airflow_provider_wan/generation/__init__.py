# SPDX-License-Identifier: Apache-2.0
"""What this provider knows that the API does not: decide, remember, land."""
