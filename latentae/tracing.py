"""Whether code computes, or is only followed by a compiler, an export or a transform."""

import torch
from torch import Tensor, nn


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records what runs, as torch's older exporter to ONNX does."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Whether a model is traced or exported, so that Python's branches are taken once and for all."""
    if is_traced():
        return True
    exporting = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return exporting is not None and bool(exporting())


def values_are_readable(tensor: Tensor) -> bool:
    """Whether Python may look at the values of a tensor.

    Reading them would break a compiler's graph, freeze a branch into an export, be counted by a mode such as
    torch's counter of operations, and fail where there are none, as on fake and meta tensors.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_meta
        and not torch.compiler.is_compiling()
        and not is_traced()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
