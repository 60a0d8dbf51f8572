"""Encoders and decoders that do the same with less.

``make_lean`` exchanges their blocks by some that keep less for the backward pass, and ``make_fast`` by the
same ones, with fewer multiplications without gradients: ``vae.optimize()`` and ``vae.deoptimize()``.
"""

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
    LeanSequential,
    LeanUpsample2D,
)

__all__ = ["OptimizingMixin", "is_fast", "make_blocks_stock", "make_fast", "make_lean", "make_stock"]

_BLOCKS: dict[type[nn.Module], type[LeanResnetBlock2D] | type[LeanUpsample2D]] = {
    ResnetBlock2D: LeanResnetBlock2D,
    Upsample2D: LeanUpsample2D,
}

_REWRITTEN = (LeanResnetBlock2D, LeanUpsample2D, LeanSequential)


class OptimizingMixin:
    """Rewrites a model's blocks for inference, and back."""

    @property
    def is_optimized(self) -> bool:
        """Whether ``optimize`` is in force."""
        assert isinstance(self, nn.Module)
        return is_fast(self)

    def optimize(self) -> None:
        """Makes ``encode`` and ``decode`` without gradients faster on a CPU; images differ by rounding only.

        Upsampling and the convolution after it become one operation with a quarter of the multiplications,
        and wide 3×3 convolutions take 4/9 of them (Winograd, in float32 and float64). In bfloat16 only the
        upsampling changes, to 4/9. The blocks work in channels last inside, and so may the output be.

        Weights, their names, ``state_dict`` and saved files stay as they are, since rearranged weights are
        made anew in each call. With gradients the blocks are the training's lean ones, differentiable once.
        On other devices, compiled, exported, under autocast, or with an adapter or a hook on a layer, the
        stock code runs.
        """
        assert isinstance(self, nn.Module)
        make_fast(self)

    def deoptimize(self) -> None:
        """Undoes ``optimize``."""
        assert isinstance(self, nn.Module)
        make_blocks_stock(self)


def make_lean(model: nn.Module, recomputed_channels: int = 0) -> int:
    """Makes diffusers' ``Encoder`` and ``Decoder`` keep about a third of the tensors for the backward pass.

    Outputs and gradients stay the same up to rounding; parameters, their names, the state dict and saved
    files do not change. Blocks of other kinds (time embeddings, dropout, normalisation by the codes, other
    activations) stay as they are. Without gradients, the stock blocks' own code runs. Lean blocks are
    differentiable once, not twice. A block with an adapter (LoRA) or a hook on one of its layers runs the
    stock code and saves no memory.

    Args:
        model: any module that contains encoders or decoders; changed in place.
        recomputed_channels: residual blocks with at most this many channels keep only their input, and run
            their first convolution twice. Levels with few channels have many pixels: the most memory for the
            least work.

    Returns:
        the number of blocks exchanged.
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


def make_fast(model: nn.Module) -> int:
    """Makes diffusers' ``Encoder`` and ``Decoder`` and TAESD's layers faster without gradients, on a CPU.

    Convolutions then do the same with fewer multiplications: ``winograd`` and ``doubling``. Outputs stay the
    same up to rounding; parameters, their names, the state dict and saved files do not change. With gradients
    the blocks are lean ones. Where a block has an adapter or a hook, is compiled, exported, under autocast,
    on another device or in another dtype than float32, float64 and bfloat16, its stock code runs.

    Args:
        model: changed in place.

    Returns:
        the number of blocks that are now faster.
    """
    exchanged = 0
    for module in model.modules():
        if (lean := _BLOCKS.get(type(module))) is not None and lean.fits(module):
            module.__class__ = lean
        elif LeanSequential.fits(module):
            module.__class__ = LeanSequential
        if isinstance(module, _REWRITTEN):
            module.is_fast = True
            exchanged += 1
    return exchanged


def make_blocks_stock(model: nn.Module) -> None:
    """Undoes ``make_fast``, and ``make_lean`` of the same blocks."""
    for module in model.modules():
        if isinstance(module, _REWRITTEN):
            module.__class__ = next(stock for stock in type(module).__mro__ if stock not in _REWRITTEN)
            for name in ("is_fast", "recomputed_channels"):
                vars(module).pop(name, None)


def is_fast(model: nn.Module) -> bool:
    """Returns whether ``make_fast`` has changed a block of the model."""
    return any(isinstance(module, _REWRITTEN) and module.is_fast for module in model.modules())


def _make_end_lean(part: Encoder | Decoder) -> bool:
    """Exchanges the last normalisation, activation and convolution; returns whether they were stock ones."""
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
    """Undoes ``make_lean`` and ``make_fast``."""
    make_blocks_stock(model)
    stock: dict[type[nn.Module], type[nn.Module]] = {
        LeanActivatedNorm: nn.GroupNorm,
        LeanLastSiLU: nn.SiLU,
        LeanLastConv: nn.Conv2d,
    }
    for module in list(model.modules()):
        if type(module) in stock:
            module.__class__ = stock[type(module)]
            for name in ("part", "before"):
                vars(module).pop(name, None)
        elif isinstance(module, Attention) and type(module.processor) is LeanAttentionProcessor:
            module.set_processor(AttnProcessor2_0())
