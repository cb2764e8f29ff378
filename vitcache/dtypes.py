"""The dtypes of rows, and their numbers in native code."""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the native kinds
KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}
