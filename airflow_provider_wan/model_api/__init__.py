# SPDX-License-Identifier: Apache-2.0
"""RunComfy's Model API as plain Python: what to send, what an answer means, when to try again.

No sockets, no Airflow, no clock and no randomness in here: callers bring the I/O, the time and the random numbers.
So both hooks share every decision, and each decision is tested as a table.
"""
