"""Keep a float64 model in float64.

Norms, softmaxes and rotary tables in transformers (and in TransformerLens) are written to compute in float32 whatever
the model's dtype. Then two exact roads to one number differ by float32's rounding, and a float64 comparison proves
nothing. Inside `double_kept` those casts leave float64 tensors as they are; other dtypes are untouched.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SOFTMAX = {torch.softmax, Tensor.softmax, torch.nn.functional.softmax}


class _KeepDouble(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if func is Tensor.float:
                return first
            if func is Tensor.to or func in _SOFTMAX:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {name: torch.float64 if v is torch.float32 else v for name, v in kwargs.items()}
        return func(*args, **kwargs)


def double_kept(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """For a float64 model, a block in which nothing is rounded to float32 on the way; otherwise nothing."""
    return _KeepDouble() if dtype == torch.float64 else nullcontext()
