"""Self-attention that keeps its input for the backward pass instead of the normalised input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentae.models.lean.functions import (
    Gradients,
    autocast_dtype,
    computing_dtype,
    is_plain,
    normalisation_gradient,
    normalise,
    normalise_again,
)


class LeanAttentionProcessor(AttnProcessor2_0):
    """Self-attention over all positions of [B, C, H, W]; without gradients, the stock processor."""

    @classmethod
    def fits(cls, attention: nn.Module) -> bool:
        """Returns whether the module has the form autoencoders use: group norm, projections with biases."""
        return (
            isinstance(attention, Attention)
            and type(attention.processor) is AttnProcessor2_0
            and attention.group_norm is not None
            and attention.spatial_norm is None
            and attention.norm_q is None
            and attention.norm_k is None
            and not attention.fused_projections
            and is_plain((attention.to_q, attention.to_k, attention.to_v), nn.Linear)
            and all(layer.bias is not None for layer in (attention.to_q, attention.to_k, attention.to_v))
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Maps [B, C, H, W] to the same shape; the other arguments are the stock processor's."""
        more = (encoder_hidden_states, attention_mask, temb)
        layers = (attn.to_q, attn.to_k, attn.to_v)
        if (
            any(argument is not None for argument in more)
            or not torch.is_grad_enabled()
            or not is_plain((attn.group_norm, *layers), nn.GroupNorm, nn.Linear)
        ):
            return super().__call__(attn, hidden_states, *more)
        projections = normalised_projections(hidden_states.flatten(2), attn.group_norm, layers)
        query, key, value = projections.unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        output = projected.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            output = output + hidden_states
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def normalised_projections(inputs: Tensor, norm: nn.GroupNorm, layers: tuple[nn.Linear, ...]) -> Tensor:
    """Returns the linear layers' outputs side by side, [B, N, ΣC'], of the normalised inputs [B, C, N].

    It is differentiable once.
    """
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    dtype = autocast_dtype(inputs, layers[0].weight)
    return _NormalisedProjection.apply(inputs, norm.weight, norm.bias, norm, dtype, *parameters)


class _NormalisedProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        norm: nn.GroupNorm,
        dtype: torch.dtype,
        *parameters: Tensor,
    ) -> Tensor:
        normalised, mean, rstd = normalise(inputs.to(computing_dtype(inputs, norm_weight)), norm)
        weights, biases = parameters[::2], parameters[1::2]
        ctx.save_for_backward(inputs, mean, rstd, norm_weight, norm_bias, *weights)
        ctx.dtype = dtype
        return F.linear(
            normalised.transpose(1, 2).to(dtype), torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        inputs, mean, rstd, norm_weight, norm_bias, *weights = ctx.saved_tensors
        computing = inputs.to(computing_dtype(inputs, norm_weight))
        normalised = normalise_again(computing, mean, rstd, norm_weight, norm_bias).to(ctx.dtype)
        gradient = gradient.to(ctx.dtype)
        # d/dW = Σ_b gᵀ y; d/dy = Wᵀ gᵀ, in the layout of the inputs
        of_weights = torch.einsum("bno,bcn->oc", gradient, normalised).to(weights[0].dtype)
        of_biases = gradient.sum(dim=(0, 1)).to(weights[0].dtype)
        weight = torch.cat(weights).to(ctx.dtype)
        slope = torch.matmul(weight.t(), gradient.transpose(1, 2)).to(computing.dtype)
        of_inputs, *of_norm = normalisation_gradient(
            slope, computing, mean, rstd, norm_weight, list(ctx.needs_input_grad[:3])
        )
        of_inputs = None if of_inputs is None else of_inputs.to(inputs.dtype)
        sizes = [len(weight) for weight in weights]
        pairs = zip(of_weights.split(sizes), of_biases.split(sizes), strict=True)
        return of_inputs, *of_norm, None, None, *(part for pair in pairs for part in pair)
