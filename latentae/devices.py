"""What a process and a device can do, and whether code computes or is only followed.

The cores that a process may use; whether a device computes in float64 or bfloat16; whether a compiler, an
export or a transform follows the code instead of computing with it.
"""

import os

import torch
from torch import Tensor, nn

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that do not compute in float64: Apple's GPUs."""


def usable_cores() -> int:
    """Cores that this process may use, at least 1; all of the machine's where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a scheduler may grant a few of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_native_bfloat16() -> bool:
    """Whether this machine's accelerator, or else its CPU, multiplies in bfloat16.

    GPUs since Ampere do, and CPUs with AVX512-BF16 or AMX. Other CPUs convert to float32 and back, which
    takes longer than float32 alone.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type not in WITHOUT_FLOAT64


def to_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64: on its device where that has float64, else on the CPU."""
    return tensor.double() if has_float64(tensor.device) else to_float64_on_cpu(tensor)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU to a device. The host does not wait for what a GPU is computing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_float64_on_cpu(tensor: Tensor) -> Tensor:
    """A tensor in float64 on the CPU. It changes its type there: not every device knows float64."""
    return tensor.cpu().double()


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
