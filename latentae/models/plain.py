"""A model's weights as ordinary parameters under its class's own names.

What is loaded or called on a model for inference changes what its state dict holds: adapters (LoRA) move a
layer's weight into ``base_layer``, fused projections add ``to_qkv``, and quantisation puts other tensors in
the place of floats. Other programs know none of this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.utils import parametrize

Model = TypeVar("Model", bound=nn.Module)


def make_plain(model: nn.Module) -> list[str]:
    """Merges adapters, dequantises weights and splits fused projections, in place.

    Args:
        model: that ``check_weights`` lets through.

    Returns:
        sentences on what was changed in a way that a user should know.
    """
    remarks = [*dequantise(model), *_merge_adapters(model)]
    for attention in _fused(model):
        _split_projections(attention)
    return remarks


def plain(model: Model) -> Model:
    """The model itself where its weights are ordinary ones, else a copy that ``make_plain`` has changed.

    Raises:
        ValueError: as ``check_weights``.
    """
    check_weights(model)
    if not _is_changed(model):
        return model
    twin = copy.deepcopy(model)
    make_plain(twin)
    return twin


def without_fused_projections(model: Model) -> Model:
    """The model itself where no projections are fused, else a copy in which they are split."""
    if not _fused(model):
        return model
    twin = copy.deepcopy(model)
    for attention in _fused(twin):
        _split_projections(attention)
    return twin


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put layers with adapters (LoRA and the like) in the place of others."""
    return any(True for _ in _adapted_layers(model))


def fuse_projections(model: Any) -> None:
    """diffusers' ``fuse_qkv_projections``, which would leave adapters out of the fused weights.

    Raises:
        ValueError: the projections have adapters.
    """
    for _, name, _ in _adapted_layers(model):
        if name in ("to_q", "to_k", "to_v"):
            raise ValueError(
                f"{name} has an adapter (LoRA or the like), which fused weights would leave out: fuse the "
                "projections of the merged model, to_diffusers(), or before add_adapter"
            )
    AutoencoderKL.fuse_qkv_projections(model)


def check_weights(model: nn.Module) -> None:
    """Raises ValueError for weights whose values are elsewhere, or that nothing here can turn into floats."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name} computes its weights by a parametrization, such as weight normalisation: call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    for name, parameter in model.named_parameters():
        if (objection := _objection(parameter)) is not None:
            raise ValueError(f"the weight {name} {objection}")


def dequantise(model: nn.Module) -> list[str]:
    """Replaces weights that another library has quantised, such as torchao's, by floats, in place.

    Returns:
        a sentence on it where there were any.
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


def _is_changed(model: nn.Module) -> bool:
    return (
        has_adapters(model)
        or bool(_fused(model))
        or any(_can_dequantise(parameter) for parameter in model.parameters())
    )


def _fused(model: nn.Module) -> list[Attention]:
    return [
        module for module in model.modules() if isinstance(module, Attention) and module.fused_projections
    ]


def _adapted_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """(parent, name, layer) of each layer that PEFT has put in the place of another one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer") and hasattr(child, "merge"):
                yield parent, name, child


def _merge_adapters(model: nn.Module) -> list[str]:
    """Puts the weights that adapted layers compute with into plain layers; returns remarks."""
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


@torch.no_grad()
def _split_projections(attention: Attention) -> None:
    """Undoes ``fuse_projections``: fused weights that are in use go back to those of q, k and v."""
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


def _objection(parameter: nn.Parameter) -> str | None:
    """Why a weight cannot be read, with the remedy; None where it can."""
    if _can_dequantise(parameter):
        return None
    if _is_subclass(parameter):
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
    return _is_subclass(parameter) and type(parameter).dequantize is not Tensor.dequantize


def _is_subclass(parameter: nn.Parameter) -> bool:
    """Whether a parameter holds a tensor of another library's class."""
    return type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor
