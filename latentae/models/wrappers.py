"""Wrappers of modules (torch.compile, DataParallel, FSDP, checkpointing), and the parts of names they add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

Value = TypeVar("Value")

# The attribute in which a wrapper keeps the wrapped module: it becomes a part of all names below.
_ATTRIBUTES = (
    "_orig_mod",  # torch.compile
    "_checkpoint_wrapped_module",  # torch's activation checkpointing, offloading
    "_fsdp_wrapped_module",
    "_forward_module",  # Lightning Fabric
)
_PARALLEL = "module"  # DataParallel, DistributedDataParallel, DeepSpeed
_PART = re.compile(rf"(?<![^.])(?:{'|'.join((*_ATTRIBUTES, _PARALLEL))})\.")


def clean_name(name: str) -> str:
    """A tensor's name without the parts that wrappers put anywhere into it."""
    return _PART.sub("", name)


def clean_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under names without the parts of wrappers.

    Raises:
        ValueError: two names become one.
    """
    cleaned: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for name, value in values.items():
        clean = clean_name(name)
        if clean in cleaned:
            raise ValueError(
                f"{origin[clean]} and {name} are the same tensor's name, but for a wrapper's part"
            )
        cleaned[clean], origin[clean] = value, name
    return cleaned


def unwrap(model: nn.Module) -> None:
    """Puts wrapped modules in the place of their wrappers, in place, wherever they are below ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            inner = child
            while (wrapped := _wrapped(inner)) is not None:
                inner = wrapped
            if inner is not child:
                setattr(parent, name, inner)


def remove_offloading(model: nn.Module) -> None:
    """Takes off, in place, what accelerate does before and after a call, such as moving weights to a GPU."""
    for module in model.modules():
        module.__dict__.pop("_hf_hook", None)
        if "_old_forward" in module.__dict__:
            module.forward = module.__dict__.pop("_old_forward")


def check_hooks(model: nn.Module) -> None:
    """Raises ValueError for hooks of diffusers, which a copy of the model cannot be freed from."""
    for module in model.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if hooks:
            raise ValueError(
                f"the model runs with diffusers' hook {next(iter(hooks))!r}: use it as it was before "
                "enable_group_offload, enable_layerwise_casting or the like"
            )


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper holds; None where ``module`` is no wrapper."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return module.module
    for attribute in _ATTRIBUTES:
        inner = module._modules.get(attribute)
        if inner is not None:
            return inner
    return None
