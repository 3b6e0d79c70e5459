# SPDX-License-Identifier: Apache-2.0
"""An emulator of RunComfy's Model API."""
