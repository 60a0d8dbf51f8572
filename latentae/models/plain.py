"""Turns a model back into its class's own modules and parameters, whatever was put around or into them.

Wrappers (torch.compile, DataParallel, FSDP, checkpointing) insert parts into the names of tensors. Hooks of
accelerate and diffusers replace ``forward``. Adapters (LoRA) move a layer's weight into ``base_layer``, fused
projections add ``to_qkv``, and quantisation replaces floats by other tensors. Other programs know none of
these.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize

Model = TypeVar("Model", bound=nn.Module)
Value = TypeVar("Value")

# The attribute in which a wrapper keeps the wrapped module; it becomes a part of the names of its tensors.
_WRAPPER_ATTRIBUTES = (
    "_orig_mod",  # torch.compile
    "_checkpoint_wrapped_module",  # torch's activation checkpointing and offloading
    "_fsdp_wrapped_module",
    "_forward_module",  # Lightning Fabric
)
_PARALLEL_ATTRIBUTE = "module"  # DataParallel, DistributedDataParallel, DeepSpeed
_WRAPPER_PART = re.compile(rf"(?<![^.])(?:{'|'.join((*_WRAPPER_ATTRIBUTES, _PARALLEL_ATTRIBUTE))})\.")


# Wrappers and hooks


def clean_name(name: str) -> str:
    """Returns a tensor's name without the parts that wrappers insert."""
    return _WRAPPER_PART.sub("", name)


def clean_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the values under names without the parts that wrappers insert.

    Raises:
        ValueError: two names become the same.
    """
    cleaned: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for name, value in values.items():
        clean = clean_name(name)
        if clean in cleaned:
            raise ValueError(
                f"{origin[clean]} and {name} are the same tensor's name apart from a wrapper's part"
            )
        cleaned[clean], origin[clean] = value, name
    return cleaned


def unwrap(model: nn.Module) -> None:
    """Replaces all wrappers below ``model`` by the modules that they wrap, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            inner = child
            while (wrapped := _wrapped_module(inner)) is not None:
                inner = wrapped
            if inner is not child:
                setattr(parent, name, inner)


def _wrapped_module(module: nn.Module) -> nn.Module | None:
    """Returns the module that a wrapper holds; None if ``module`` is not a wrapper."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return module.module
    inner = (module._modules.get(attribute) for attribute in _WRAPPER_ATTRIBUTES)
    return next((wrapped for wrapped in inner if wrapped is not None), None)


def remove_offloading(model: nn.Module) -> None:
    """Removes accelerate's hooks, such as those that move weights to a GPU for a call, in place."""
    for module in model.modules():
        module.__dict__.pop("_hf_hook", None)
        if "_old_forward" in module.__dict__:
            module.forward = module.__dict__.pop("_old_forward")


def check_hooks(model: nn.Module) -> None:
    """Raises ValueError for diffusers' hooks, which cannot be removed from a copy of the model."""
    for module in model.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if hooks:
            raise ValueError(
                f"the model runs with diffusers' hook {next(iter(hooks))!r}: use it as it was before "
                "enable_group_offload, enable_layerwise_casting or the like"
            )


# Adapters, fused projections and quantised weights


def plain(model: Model) -> Model:
    """Returns the model if its weights are ordinary parameters, else a copy changed by ``make_plain``.

    Raises:
        ValueError: as in ``check_weights``.
    """
    check_weights(model)
    is_plain = not (has_adapters(model) or _fused(model) or any(map(_can_dequantise, model.parameters())))
    if is_plain:
        return model
    twin = copy.deepcopy(model)
    make_plain(twin)
    return twin


def make_plain(model: nn.Module) -> list[str]:
    """Merges adapters, dequantises weights and splits fused projections, in place.

    Args:
        model: that passes ``check_weights``.

    Returns:
        remarks for the user on changes that affect the weights' values.
    """
    remarks = [*dequantise(model), *_merge_adapters(model)]
    for attention in _fused(model):
        _split_projections(attention)
    return remarks


def check_weights(model: nn.Module) -> None:
    """Raises ValueError for weights that are not in memory, or that cannot be converted to floats."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name} computes its weights by a parametrization, such as weight normalisation: call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    for name, parameter in model.named_parameters():
        if (objection := _objection(parameter)) is not None:
            raise ValueError(f"the weight {name} {objection}")


def _objection(parameter: nn.Parameter) -> str | None:
    """Returns why a weight cannot be read, with the remedy; None if it can."""
    if _can_dequantise(parameter):
        return None
    if _is_foreign(parameter):
        return (
            f"is a {type(parameter).__name__}, which only the library that made it can read: use the model "
            "as it was before it was quantised or sharded"
        )
    if parameter.is_meta:
        return (
            "is on the meta device, so its values are not here: load the model without device_map and "
            "offloading"
        )
    if not parameter.is_floating_point():
        dtype = str(parameter.dtype).removeprefix("torch.")
        return f"is quantised to {dtype}: use the model as it was before it was quantised"
    return None


def _can_dequantise(parameter: nn.Parameter) -> bool:
    return _is_foreign(parameter) and type(parameter).dequantize is not Tensor.dequantize


def _is_foreign(parameter: nn.Parameter) -> bool:
    """Returns whether a parameter is or holds a tensor of another library's class."""
    return type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor


def dequantise(model: nn.Module) -> list[str]:
    """Replaces weights that another library has quantised, such as torchao, by floats, in place.

    Returns:
        a remark for the user if there were any.
    """
    kinds: set[str] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _can_dequantise(parameter):
                kinds.add(type(parameter).__name__)
                setattr(module, name, nn.Parameter(parameter.detach().dequantize()))
    if not kinds:
        return []
    return [
        f"quantised weights ({', '.join(sorted(kinds))}) were written as floats: they keep the error of the "
        "quantisation"
    ]


def has_adapters(model: nn.Module) -> bool:
    """Returns whether PEFT has replaced layers by layers with adapters (LoRA and the like)."""
    return any(True for _ in _adapted_layers(model))


def _adapted_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yields (parent, name, layer) for each layer that PEFT has replaced."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer") and hasattr(child, "merge"):
                yield parent, name, child


def _merge_adapters(model: nn.Module) -> list[str]:
    """Replaces adapted layers by plain ones with the weights that they compute with; returns remarks."""
    merged: set[str] = set()
    for parent, name, layer in _adapted_layers(model):
        if layer.disable_adapters and layer.merged:
            layer.unmerge()
        elif not (layer.disable_adapters or layer.merged):
            layer.merge(safe_merge=True)
        merged.update(layer.merged_adapters)
        setattr(parent, name, layer.get_base_layer())
    if not merged:
        return []
    return [f"the adapter {', '.join(sorted(merged))} (LoRA or the like) was merged into the weights"]


def fuse_projections(model: Any) -> None:
    """diffusers' ``fuse_qkv_projections``, but refuses projections with adapters.

    Raises:
        ValueError: the projections have adapters, which the fused weights would leave out.
    """
    for _, name, _ in _adapted_layers(model):
        if name in ("to_q", "to_k", "to_v"):
            raise ValueError(
                f"{name} has an adapter (LoRA or the like), which fused weights would leave out: fuse the "
                "projections of the merged model, to_diffusers(), or before add_adapter"
            )
    AutoencoderKL.fuse_qkv_projections(model)


def without_fused_projections(model: Model) -> Model:
    """Returns the model if no projections are fused, else a copy in which they are split."""
    if not _fused(model):
        return model
    twin = copy.deepcopy(model)
    for attention in _fused(twin):
        _split_projections(attention)
    return twin


def _fused(model: nn.Module) -> list[Attention]:
    return [
        module for module in model.modules() if isinstance(module, Attention) and module.fused_projections
    ]


@torch.no_grad()
def _split_projections(attention: Attention) -> None:
    """Undoes ``fuse_projections``; fused weights that are in use are copied back to q, k and v."""
    fused = attention.to_qkv
    if isinstance(attention.processor, FusedAttnProcessor2_0):
        layers = (attention.to_q, attention.to_k, attention.to_v)
        for layer, weight in zip(layers, fused.weight.chunk(3), strict=True):
            layer.weight.copy_(weight)
        if fused.bias is not None:
            for layer, bias in zip(layers, fused.bias.chunk(3), strict=True):
                layer.bias.copy_(bias)
        attention.set_processor(AttnProcessor2_0())
    del attention.to_qkv
    attention.fused_projections = False
