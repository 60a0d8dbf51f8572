"""Counts the cores that a process may use, and tells whether a device computes in float64."""

import os

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that do not compute in float64: Apple's GPUs."""


def usable_cores() -> int:
    """Cores that this process may use, at least 1; all of the machine's where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a scheduler may grant a few of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
