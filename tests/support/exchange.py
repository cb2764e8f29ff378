"""Whether torch has DLPack's exchange functions, by which the native module reads tensors."""

import torch

# torch 2.9 has none: Python then describes each tensor, with the same rows, more frames and more host time.
HAS_EXCHANGE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
