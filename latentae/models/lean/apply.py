"""Exchanges a model's blocks for lean ones, and back."""

from __future__ import annotations

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from latentae.models.lean.attention import LeanAttentionProcessor
from latentae.models.lean.blocks import (
    LeanActivatedNorm,
    LeanLastConv,
    LeanLastSiLU,
    LeanResnetBlock2D,
    LeanUpsample2D,
)

_BLOCKS: dict[type[nn.Module], type[LeanResnetBlock2D] | type[LeanUpsample2D]] = {
    ResnetBlock2D: LeanResnetBlock2D,
    Upsample2D: LeanUpsample2D,
}


def make_lean(model: nn.Module, recomputed_channels: int = 0) -> int:
    """Makes the backward pass of diffusers' ``Encoder`` and ``Decoder`` keep about a third of its tensors.

    The function stays the same, its gradients too but for rounding; parameters, their names, the state dict
    and what is saved are untouched. Blocks of other kinds (time embeddings, dropout, normalisation by the
    codes, other activations) are left alone. Without gradients the stock blocks' own code runs. Afterwards
    the blocks can be differentiated once, not twice. A block with an adapter (LoRA) or a hook on one of its
    layers runs the stock code, and keeps as much.

    Args:
        model: any module that holds encoders or decoders, wherever; changed in place.
        recomputed_channels: residual blocks of as many channels or fewer keep their input alone, and do their
            first convolution twice. Where channels are few, pixels are many: most memory for least work.

    Returns:
        how many blocks were exchanged.
    """
    exchanged = 0
    for part in [module for module in model.modules() if isinstance(module, Encoder | Decoder)]:
        for module in part.modules():
            lean = _BLOCKS.get(type(module))
            if lean is not None and lean.fits(module):
                module.__class__ = lean
                module.recomputed_channels = recomputed_channels
                exchanged += 1
            elif LeanAttentionProcessor.fits(module):
                assert isinstance(module, Attention)
                module.set_processor(LeanAttentionProcessor())
                exchanged += 1
        exchanged += _make_end_lean(part)
    return exchanged


def _make_end_lean(part: Encoder | Decoder) -> bool:
    norm, activation, conv = part.conv_norm_out, part.conv_act, part.conv_out
    if type(norm) is not nn.GroupNorm or type(activation) is not nn.SiLU or type(conv) is not nn.Conv2d:
        return False
    norm.__class__, activation.__class__, conv.__class__ = LeanActivatedNorm, LeanLastSiLU, LeanLastConv
    assert isinstance(norm, LeanActivatedNorm)
    assert isinstance(activation, LeanLastSiLU)
    assert isinstance(conv, LeanLastConv)
    norm.part, activation.before, conv.before = [part], [norm], [norm]
    return True


def make_stock(model: nn.Module) -> None:
    """Undoes ``make_lean``."""
    stock: dict[type[nn.Module], type[nn.Module]] = {lean: block for block, lean in _BLOCKS.items()}
    ends: dict[type[nn.Module], type[nn.Module]] = {
        LeanActivatedNorm: nn.GroupNorm,
        LeanLastSiLU: nn.SiLU,
        LeanLastConv: nn.Conv2d,
    }
    for module in list(model.modules()):
        if type(module) in ends:
            for name in ("part", "before"):
                vars(module).pop(name, None)
            module.__class__ = ends[type(module)]
        elif isinstance(module, Attention) and type(module.processor) is LeanAttentionProcessor:
            module.set_processor(AttnProcessor2_0())
        elif type(module) in stock:
            module.__class__ = stock[type(module)]
            del module.recomputed_channels
