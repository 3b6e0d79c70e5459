# SPDX-License-Identifier: Apache-2.0
"""RunComfy's Model API as plain Python: calls, the meaning of answers, and retries.

No sockets, no Airflow, no clock and no randomness in here: callers bring the I/O, the time and the random numbers.
So both hooks share every decision, and each decision is tested as a table.
"""

#: The inputs that are operator parameters of their own: those of the default model.
INPUT_PARAMETERS = (
    "prompt",
    "img_url",
    "negative_prompt",
    "template",
    "resolution",
    "duration",
    "prompt_extend",
    "seed",
)
