"""A switch for faster inference that every model has: ``vae.optimize()`` and ``vae.deoptimize()``."""

from __future__ import annotations

from torch import nn

from latentae.models.lean import is_fast, make_blocks_stock, make_fast


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
