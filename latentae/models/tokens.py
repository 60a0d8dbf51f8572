"""Images as discrete tokens, for autoregressive and masked models."""

from __future__ import annotations

from typing import Any

from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from latentae.quantizers import Quantizer


class TokenMixin:
    """Indices of codes, of images and back: needs ``quantize``, ``encode``, ``_decode`` and ``dtype``."""

    quantize: Quantizer
    encode: Any
    dtype: Any
    downsampling_factor: int

    @property
    def num_codes(self) -> int:
        """Codes of a table: indices are in [0, num_codes)."""
        return self.quantize.num_codes

    def indices_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(h, w), or (depth, h, w) of a composition: the indices of one image, whose product is its tokens.

        Args:
            height, width: of the image, in pixels.
        """
        factor = self.downsampling_factor
        depth = () if self.quantize.depth is None else (self.quantize.depth,)
        return (*depth, -(-height // factor), -(-width // factor))

    @apply_forward_hook
    def encode_indices(self, images: Tensor) -> Tensor:
        """Indices [B, h, w] of images [B, C, H, W] in [−1, 1]; [B, depth, h, w] of a composition.

        Raises:
            ValueError: as ``encode``; an empty batch; latents that are not finite.
        """
        return self.quantize.indices(self.encode(images).latents)

    @apply_forward_hook
    def decode_indices(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images [B, C, H, W] of indices [B, h, w] or [B, depth, h, w]; undoes ``encode_indices``.

        Args:
            indices: int64 or int32; of a residual quantizer also those of the first few tables.
            size: (H, W) to crop the images to.

        Raises:
            ValueError: another shape, an index outside the codebook, or indices that are no integers.
        """
        return self._decode(self.codes_to_latents(indices), size)

    @apply_forward_hook
    def codes_to_latents(self, indices: Tensor) -> Tensor:
        """Quantized latents [B, d, h, w] of indices as ``decode_indices`` takes them.

        ``decode(latents, force_not_quantize=True)`` turns them into images.

        Raises:
            ValueError: as ``decode_indices``.
        """
        return self.quantize.codes(indices).to(self.dtype)

    def _as_maps(self, indices: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Indices in any shape as maps, for (B, h, w, d) of what they stand for."""
        tables = () if self.quantize.depth is None else (-1,)
        return indices.reshape(shape[0], *tables, *shape[1:3])

    def _decode(self, quantized: Tensor, size: tuple[int, int] | None) -> Tensor:
        raise NotImplementedError
