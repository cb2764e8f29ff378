"""Features of torch that torch 2.9, the oldest supported version, lacks."""

import torch

from vitcache import versions

IS_OLDEST = versions.major_minor(torch.__version__) == versions.major_minor(versions.SUPPORTED["torch"][0])
# DLPack's exchange functions, by which the native module reads tensors. torch 2.9 has none: Python then
# describes each tensor, with the same rows, more frames and more host time.
HAS_EXCHANGE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
