# SPDX-License-Identifier: Apache-2.0
"""One small parser a format: what the header says, read through a :class:`~..reader.Window`.

Pillow reads whole segments (and whole files for AVIF and HEIF) to answer the same questions; over a network that is
most of the cost. These parsers skip what they do not need. Each takes a window and returns
:class:`~airflow_provider_wan.images.facts.HeaderFacts`.
"""
