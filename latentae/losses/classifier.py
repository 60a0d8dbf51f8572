"""LPIPS plus the distance between a classifier's logits, as tokenizers since MaskBit and TiTok train with."""

from __future__ import annotations

from torch import Tensor, nn

from latentae.losses.feature_maps import FrozenNetwork, resize
from latentae.losses.perceptual import LPIPS, as_rgb


class LogitDistance(FrozenNetwork):
    """The mean squared difference of an ImageNet classifier's logits, differentiable in the reconstruction.

    Images are resized to 224×224 pixels first, as in TiTok's program (Yu et al. 2024, arXiv 2406.07550).
    MaskBit (Weber et al. 2024, arXiv 2409.16211) uses ResNet-50 in this way, TiTok's later models ConvNeXt-S.
    Computation is in the images' type if ``precision`` is float32, also under autocast.

    Args:
        classifier: maps normalised images [B, 3, 224, 224] to logits [B, K], each image for itself when in
            evaluation mode.
        precision: ``float32`` or ``bfloat16``.
    """

    side = 224

    def __init__(self, classifier: nn.Module, precision: str = "float32") -> None:
        super().__init__(precision)
        self.classifier = classifier
        self.freeze()

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Returns 1/K Σ_k (ŷ_k − y_k)² of each image, [B], of two [B, C, H, W] in [−1, 1].

        Channels make up RGB images as in ``LPIPS``; the distance is the mean over these. The target's logits
        are computed without a gradient.
        """
        logits = self._logits(reconstruction)
        distances = (logits - self._logits(target.detach())).square().mean(dim=1)
        return distances.reshape(len(reconstruction), -1).mean(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        resized = self.normalised(resize(as_rgb(images), (self.side, self.side)))
        with self.autocast(images.device.type):
            return self.classifier(resized).to(images.dtype)


class LPIPSWithLogits(LPIPS):
    """LPIPS(x̂, x) + weight · mean squared difference of logits (TiTok's ``lpips-convnext_s`` for ConvNeXt-S).

    Args:
        trunk, net, chunk, precision: as in ``LPIPS``. The classifier sees the whole batch at once.
        logits: the second term.
        logits_weight: its weight.
    """

    def __init__(
        self,
        trunk: dict[str, Tensor],
        net: str = "alex",
        *,
        logits: LogitDistance,
        logits_weight: float = 0.1,
        chunk: int | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(trunk, net, chunk=chunk, precision=precision)
        self.logits = logits
        self.logits_weight = logits_weight

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of both terms of each image, [B]; arguments and errors as in ``LPIPS``."""
        distance = super().forward(reconstruction, target)
        images, references = (batch.to(distance.dtype) for batch in (reconstruction, target))
        return distance + self.logits_weight * self.logits(images, references)
