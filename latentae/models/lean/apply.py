"""Exchanges a model's blocks for lean ones, and back."""

from __future__ import annotations

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from latentae.models.lean.attention import LeanAttentionProcessor
from latentae.models.lean.blocks import LeanActivatedNorm, LeanResnetBlock2D, LeanUpsample2D

_BLOCKS: dict[type[nn.Module], type[LeanResnetBlock2D] | type[LeanUpsample2D]] = {
    ResnetBlock2D: LeanResnetBlock2D,
    Upsample2D: LeanUpsample2D,
}


def make_lean(model: nn.Module) -> int:
    """Makes the backward pass of diffusers' ``Encoder`` and ``Decoder`` keep about a third of its tensors.

    The function stays the same, its gradients too but for rounding; parameters, their names, the state dict
    and what is saved are untouched. Blocks of other kinds (time embeddings, dropout, normalisation by the
    codes, other activations) are left alone. Without gradients the stock blocks' own code runs. Afterwards
    the blocks can be differentiated once, not twice, and hooks inside of them are called without gradients
    only.

    Args:
        model: any module that holds encoders or decoders, wherever; changed in place.

    Returns:
        how many blocks were exchanged.
    """
    exchanged = 0
    for part in [module for module in model.modules() if isinstance(module, Encoder | Decoder)]:
        for module in part.modules():
            lean = _BLOCKS.get(type(module))
            if lean is not None and lean.fits(module):
                module.__class__ = lean
                exchanged += 1
            elif LeanAttentionProcessor.fits(module):
                assert isinstance(module, Attention)
                module.set_processor(LeanAttentionProcessor())
                exchanged += 1
        if type(part.conv_norm_out) is nn.GroupNorm and type(part.conv_act) is nn.SiLU:
            part.conv_norm_out.__class__ = LeanActivatedNorm
            part.conv_act = nn.Identity()
            exchanged += 1
    return exchanged


def make_stock(model: nn.Module) -> None:
    """Undoes ``make_lean``."""
    stock: dict[type[nn.Module], type[nn.Module]] = {lean: block for block, lean in _BLOCKS.items()}
    stock[LeanActivatedNorm] = nn.GroupNorm
    for module in list(model.modules()):
        if isinstance(module, Encoder | Decoder) and type(module.conv_norm_out) is LeanActivatedNorm:
            module.conv_act = nn.SiLU()
        if isinstance(module, Attention) and type(module.processor) is LeanAttentionProcessor:
            module.set_processor(AttnProcessor2_0())
        elif type(module) in stock:
            module.__class__ = stock[type(module)]
