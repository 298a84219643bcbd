"""What options may be, known without torch."""

from __future__ import annotations

#: From one vector per token to one per item; ``last`` is the last token that is no padding, as decoders are trained.
POOLINGS = ("cls", "mean", "max", "last")

#: Of the arithmetic; vectors are float32.
PRECISIONS = ("fp32", "bf16")
