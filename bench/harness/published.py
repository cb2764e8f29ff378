"""Times that the design measured on one H100, to check the contenders that re-express engines.

Microseconds on the device with a cold L2, one run of 2026-11-22 (torch 2.11, Triton 3.6). The numbers of vLLM
and SGLang are of their released merge functions; those of transformers and TensorRT-LLM are of
re-expressions.
The design measured no other device.
"""

from __future__ import annotations

DEVICE = "H100"
TOLERANCE = 0.15

CASES = ("9x880", "32x880", "8x3600", "64x256", "512x64", "9x880-deepstack3")
PUBLISHED_US = {
    "transformers": (1350, 4608, 5832, 2600, 5152, None),
    "vllm": (300, 796, 1012, 538, 1501, 1228),
    "sglang": (485, 994, None, None, 1104, 1124),
    "tensorrt-llm": (217, 719, 900, 418, 990, None),
    "slice-loop": (98, 434, 333, 582, 4753, None),
    "copy": (49, 159, 201, 93, 199, 177),
}


def published_us(device_name: str, case: str, contender: str) -> int | None:
    """Return the design's microseconds for a contender, or None if the design has no number for it."""
    if DEVICE not in device_name or case not in CASES or contender not in PUBLISHED_US:
        return None
    return PUBLISHED_US[contender][CASES.index(case)]
