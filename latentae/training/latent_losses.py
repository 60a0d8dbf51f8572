"""What a step does to the latents beside encoding and decoding them, and the losses that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.losses.adversarial import adaptive_weight, last_layer_gradient
from latentae.losses.feature_maps import FeatureMaps
from latentae.losses.latents import Alignment, Draw, Equivariance, LatentNoise, Spectral, low_pass
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.training.passage import Passage
from latentae.training.randomness import StepRandomness

Change = Callable[[Tensor], Tensor]


@dataclass
class AlignedFeatures:
    """Alignment with a network.

    Attributes:
        loss: the terms and their weight.
        network: gives the features.
        encoder_output: the encoder's last convolution, at which the adaptive weight is measured.
    """

    loss: Alignment
    network: FeatureMaps
    encoder_output: nn.Conv2d


@dataclass
class PreparedStep:
    """What the draws of a micro-batch make of it.

    Attributes:
        images: [B, C, H, W] to encode.
        target: [B, C, H', W'] what the reconstruction is compared with.
        low_passed: [B, C, H'', W''] what the low-passed latents are to decode to, or None.
        transformed: whether it is latents that were transformed.
        arguments: of the wrapped autoencoder's forward.
    """

    images: Tensor
    target: Tensor
    low_passed: Tensor | None = None
    transformed: bool = False
    arguments: dict[str, Change] = field(default_factory=dict)


@dataclass
class LatentLosses:
    """Equivariance, noise, spectral loss and alignment, of which any may be absent.

    All draws are for the global micro-batch. The changes to latents take place inside the wrapped forward;
    on VQ models they concern the continuous latents, before quantization.

    Attributes:
        downsampling_factor: pixels per latent along each side.
    """

    downsampling_factor: int = 1
    equivariance: Equivariance | None = None
    noise: LatentNoise | None = None
    spectral: Spectral | None = None
    alignment: AlignedFeatures | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """Frozen networks that a step needs."""
        return [] if self.alignment is None else [self.alignment.network]

    @contextmanager
    def at_full_size(self) -> Iterator[None]:
        """Steps within transform nothing, and so take the most memory that any step takes."""
        equivariance, self.equivariance = self.equivariance, None
        try:
            yield
        finally:
            self.equivariance = equivariance

    def prepare(self, images: Tensor, randomness: StepRandomness) -> PreparedStep:
        """Draws what is done to a micro-batch of images [B, C, H, W]."""
        draw, factor = None, self.downsampling_factor
        if self.equivariance is not None:
            draw = self.equivariance.draw(randomness.generator("equivariance"))
        if draw is not None and draw.before_encoding:
            images = draw.transform.images(images, factor)
        latents_draw = None if draw is None or draw.before_encoding else draw
        prepared = PreparedStep(images, images, transformed=latents_draw is not None)
        if latents_draw is not None:
            prepared.target = latents_draw.transform.images(images, factor)
        if latents_draw is not None or self.noise is not None:
            prepared.arguments["change"] = partial(self._change, draw=latents_draw, randomness=randomness)
        # Images that were made smaller have lost their upper spectrum, and may have few pixels left to lose.
        if self.spectral is not None and (draw is None or not draw.before_encoding):
            divisor = self.spectral.draw(randomness.generator("low pass"))
            prepared.low_passed = low_pass(images, divisor, factor)
            prepared.arguments["low_pass"] = partial(low_pass, factor=divisor)
        return prepared

    def watch(self) -> Passage | None:
        """A context for the forward, where ``losses`` will have to know what came out of the encoder."""
        return None if self.alignment is None else Passage(self.alignment.encoder_output)

    def losses(
        self,
        prepared: PreparedStep,
        output: Any,
        encoded: Passage | None,
        objective: ReconstructionObjective,
        gradient: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by name, to be added to the others, and detached numbers for the log.

        Args:
            output: of the wrapped autoencoder.
            encoded: what ``watch`` has seen.
            objective: judges the low-passed reconstruction.
            gradient: of the objective with respect to ``output.sample``.
        """
        losses, numbers = {}, {}
        if self.spectral is not None and prepared.low_passed is not None:
            reconstruction = output.low_passed.to(prepared.low_passed.dtype)
            losses["spectral"] = self.spectral.weight * objective(reconstruction, prepared.low_passed)[0]
        if self.alignment is not None and encoded is not None:
            aligned = self.alignment
            features = aligned.network(prepared.images, tuple(output.projected.shape[-2:]))
            cosine, similarity = aligned.loss(output.projected, features)
            weight = torch.full_like(cosine, aligned.loss.weight).detach()
            if aligned.loss.adaptive:
                weight = weight * self._adaptive(output.sample, gradient, cosine + similarity, encoded)
            losses["alignment"] = weight * (cosine + similarity)
            numbers = {
                "alignment_cosine": cosine.detach(),
                "alignment_similarity": similarity.detach(),
                "alignment_weight": weight,
            }
        return losses, numbers

    def _change(self, latents: Tensor, draw: Draw | None, randomness: StepRandomness) -> Tensor:
        if draw is not None:
            latents = draw.transform.latents(latents)
        if self.noise is not None:
            # Of the shape that is decoded: a transform would smooth noise that came before it.
            noise = randomness.normal("latent noise", *latents.shape)
            latents = self.noise(latents, noise, randomness.normal("latent noise strength", len(latents)))
        return latents

    def _adaptive(self, sample: Tensor, gradient: Tensor, loss: Tensor, encoded: Passage) -> Tensor:
        """‖∇ reconstruction‖ / ‖∇ loss‖ at the encoder's last weights, of gradients averaged over ranks.

        The first takes a backward pass through the decoder of its own, without its weights.
        """
        assert self.alignment is not None
        # The mean's gradient times the number of values: float16 would lose what is as small as the mean's.
        count = gradient.numel()
        gradients = []
        for value, seed in ((sample, (gradient * count).to(sample.dtype)), (loss * count, None)):
            (at_output,) = torch.autograd.grad(value, encoded.output, seed, retain_graph=True)
            at_output = at_output.to(gradient.dtype)
            with torch.no_grad():
                at_weight = last_layer_gradient(self.alignment.encoder_output, encoded.inputs, at_output)
            gradients.append(at_weight / count)
        first, second = distributed.all_reduce_mean(torch.stack(gradients))
        return adaptive_weight(first, second)
