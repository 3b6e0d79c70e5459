# SPDX-License-Identifier: Apache-2.0
"""RunComfy's Model API as plain Python: what to send, what an answer means, when to look again.

No sockets, no Airflow, no clock and no randomness in here: callers bring the I/O, the time and the dice.
So the synchronous and the asynchronous hook share every decision, and each one is tested as a table.
"""
