# SPDX-License-Identifier: Apache-2.0
"""Control routes, and the faults that they switch on."""
