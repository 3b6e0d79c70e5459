# SPDX-License-Identifier: Apache-2.0
"""Many images in one task: plan, budget, submits, landings and the report."""
