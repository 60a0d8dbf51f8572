"""Training the decoder alone, so that the latents stay what they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from latentae.models import KLVAE, VQVAE
from latentae.quantizers.quantizer import Quantizer

_ENCODER = ("encoder", "quant_conv", "quantize")


@dataclass(frozen=True)
class Frozen:
    """What of a model does not learn.

    Attributes:
        parts: the names of its modules that were frozen.
        parameters, total: the numbers that do not learn, and all of them.
    """

    parts: tuple[str, ...]
    parameters: int
    total: int

    def __str__(self) -> str:
        share = f"{self.parameters / 1e6:.2f} of {self.total / 1e6:.2f} M parameters"
        return (
            f"frozen: {', '.join(self.parts)} ({share}); the latents and their scale stay as they are, and "
            "losses of them (KL, codebook, commitment) drop out"
        )


def freeze_encoder(autoencoder: KLVAE | VQVAE) -> Frozen:
    """Fixes all that the latents and codes of ``autoencoder`` come from; only what decodes them still learns.

    Nothing of it takes a gradient, so no graph is recorded in the encoder and its activations are dropped at
    once, and DDP and optimizers have nothing to do with it. A codebook observes nothing any more, and its
    ``start`` and ``commit`` must not be called.
    """
    found = {name: getattr(autoencoder, name, None) for name in _ENCODER}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    for module in modules.values():
        module.requires_grad_(False)
        if isinstance(module, Quantizer):
            module.frozen = True
    counts = [(p.numel(), p.requires_grad) for p in autoencoder.parameters()]
    total = sum(count for count, _ in counts)
    return Frozen(tuple(modules), total - sum(count for count, learns in counts if learns), total)
