"""Encoding and decoding of large images with bounded memory and the result of the whole image.

Tiles that a model sees one by one have normalisation statistics and attention of their own, and therefore
look unlike each other. Here the image goes through the model layer by layer instead, in strips of rows. What
depends on the whole image sees the whole image:

- group normalisation: the statistics of a feature map are summed up while it is written, strip by strip;
- attention: runs over all positions, in chunks of queries;
- convolutions: read the rows around a strip (the halo) from the feature map.

The rows of a map are freed as soon as the next layer has read them, so that a residual block holds two maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from latentae.devices import values_are_readable
from latentae.models.exact_tiling.maps import Layer
from latentae.models.exact_tiling.programs import program_of, steps
from latentae.models.exact_tiling.walk import Execution, Norm, Plan, Program, Residual, Whole

__all__ = ["ExactTiling", "Layer", "Norm", "Program", "Residual", "Whole", "program_of", "steps"]

_STRIPS = 2**28
"""Bytes for the strips at work, if the memory allows it. Taller strips were not measured to be faster."""


@dataclass(frozen=True)
class ExactTiling:
    """Applies modules to images or latents of any size with bounded memory.

    Args:
        memory: bytes beyond weights, inputs and earlier results; None: what is free.
        storage_dtype: of the feature maps between two layers, such as ``torch.bfloat16``, which halves and
            rounds them; None: that of the computation, for the exact result.
        offload: keep the feature maps between two layers on the CPU.

    Raises:
        ValueError: memory that is no positive number of bytes, or a dtype that is not of floating point.
    """

    memory: int | None = None
    storage_dtype: torch.dtype | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        memory, dtype = self.memory, self.storage_dtype
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
            raise ValueError(f"memory is {memory!r}, but must be a positive number of bytes, or None")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"storage_dtype is {dtype!r}, but must be a floating-point dtype of torch, or None"
            )

    @torch.compiler.disable
    def apply(
        self, modules: Sequence[nn.Module], inputs: Tensor, untiled: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns what the modules, one after the other, make of inputs [B, C, H, W].

        Args:
            modules: that ``steps`` knows.
            inputs: also what a SpatialNorm sees.
            untiled: computes the same without strips. It runs if its estimated memory is allowed: ``memory``,
                or half of what is free.

        Raises:
            ValueError: an unknown module, less memory than the smallest strips need, or gradients.
        """
        if not values_are_readable(inputs):  # there are no values, or someone counts operations
            return untiled(inputs)
        program = program_of(modules)
        is_offloaded = self.offload and inputs.device.type != "cpu"
        value = max(4, inputs.element_size())  # statistics and normalisation are computed in float32
        stored = 0 if is_offloaded else (self.storage_dtype or inputs.dtype).itemsize
        plan = Plan(program, inputs[:1], value, stored)

        # Images that fit run without strips, all at once or one by one.
        memory, allowed = self.memory, self.memory
        if memory is None or allowed is None:
            memory = free_memory(inputs.device)
            allowed = memory // 2
        if plan.untiled * inputs.element_size() * len(inputs) <= allowed:
            return untiled(inputs)
        if len(inputs) > 1:
            return torch.cat([self.apply(modules, one, untiled) for one in inputs.split(1)])

        if memory < plan.smallest:
            raise ValueError(_too_little(inputs, memory, plan.smallest, self))
        if _wants_gradients(modules, inputs):
            raise ValueError(
                "exact tiling computes no gradients: call the model inside torch.no_grad(), or use "
                "enable_tiling(mode='blended')"
            )
        # Half is set aside, because maps are freed by whole strips, and for the libraries' workspace.
        strips = min(_STRIPS, (memory - plan.maps) // 2)
        device = torch.device("cpu") if is_offloaded else None
        with torch.no_grad():
            return Execution(inputs, strips, value, self.storage_dtype, device).outputs(program)


def _too_little(inputs: Tensor, memory: int, smallest: int, settings: ExactTiling) -> str:
    remedies = ["give enable_tiling a memory of at least that many bytes"]
    if settings.memory is None:
        remedies = ["free some memory"]
    if settings.storage_dtype is None and inputs.element_size() > 2:
        remedies.append("storage_dtype=torch.bfloat16")
    if not settings.offload and inputs.device.type != "cpu":
        remedies.append("offload=True")
    size = "x".join(map(str, inputs.shape[2:]))
    return (
        f"an input of {size} positions needs {smallest} bytes even in strips of one row, and {memory} are "
        f"{'free' if settings.memory is None else 'allowed'}: {', or '.join(remedies)}"
    )


def _wants_gradients(modules: Sequence[nn.Module], inputs: Tensor) -> bool:
    parameters = chain.from_iterable(module.parameters() for module in modules)
    return torch.is_grad_enabled() and any(each.requires_grad for each in chain([inputs], parameters))


def free_memory(device: torch.device) -> int:
    """Returns how many bytes are free on a device, for this process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = int(psutil.virtual_memory().available)
    # A container may allow less than the machine has.
    limit, used = (Path("/sys/fs/cgroup", f"memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()).isdecimal():
        free = min(free, max(0, int(allowed) - int(used.read_text())))
    return free
