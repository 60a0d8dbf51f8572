"""Changes to the latents within a step, the losses that follow, and the module that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.losses.adversarial import adaptive_weight
from latentae.losses.feature_maps import FeatureMaps
from latentae.losses.latents import Alignment, Draw, Equivariance, LatentNoise, Spectral, low_pass
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.losses.teacher import MatchedLevels, captured_outputs
from latentae.models.decoders import downscale
from latentae.models.latent import AutoencoderOutput
from latentae.quantizers import Quantizer
from latentae.training.adversary import CapturedCall
from latentae.training.randomness import StepRandomness

Change = Callable[[Tensor], Tensor]


@dataclass
class AlignedFeatures:
    """Alignment of latents with the features of a network.

    Attributes:
        loss: the terms and their weight.
        network: computes the features.
        encoder_output: the encoder's last convolution, at which the adaptive weight is measured.
    """

    loss: Alignment
    network: FeatureMaps
    encoder_output: nn.Conv2d


@dataclass
class PreparedStep:
    """A micro-batch and the changes that were drawn for it.

    Attributes:
        images: [B, C, H, W] to encode.
        target: [B, C, H', W'] what the reconstruction is compared with.
        low_passed: [B, C, H'', W''] what the low-passed latents are to decode to, or None.
        transformed: whether the latents are transformed.
        arguments: of the wrapped autoencoder's forward: ``change`` and ``low_pass``, functions of latents.
        backgrounds: [B, 3] colours in [−1, 1] that RGBA images are composited over, or None.
        moments: [B, 1 or 2, c, h, w] mean, and standard deviation if there is one, of the latents that were
            computed beforehand; None: the encoder computes them.
    """

    images: Tensor
    target: Tensor
    low_passed: Tensor | None = None
    transformed: bool = False
    arguments: dict[str, Change] = field(default_factory=dict)
    backgrounds: Tensor | None = None
    moments: Tensor | None = None


@dataclass
class LatentLosses:
    """Equivariance, noise, spectral loss and alignment. Any of them may be absent.

    All draws are for the global micro-batch. The latents change inside the wrapped forward. In VQ models
    these are the continuous latents, before quantization.

    Attributes:
        downsampling_factor: pixels of the encoder's images per latent along each side.
        upscale: pixels of the training images per pixel of the encoder's along each side.
    """

    downsampling_factor: int = 1
    upscale: int = 1
    equivariance: Equivariance | None = None
    noise: LatentNoise | None = None
    spectral: Spectral | None = None
    alignment: AlignedFeatures | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The frozen networks that a step needs."""
        return [] if self.alignment is None else [self.alignment.network]

    @property
    def encoder_output(self) -> nn.Conv2d | None:
        """The layer whose call ``losses`` needs, or None."""
        return None if self.alignment is None else self.alignment.encoder_output

    @contextmanager
    def at_full_size(self) -> Iterator[None]:
        """Lets the steps in its body transform nothing. They then take the most memory of all steps."""
        equivariance, self.equivariance = self.equivariance, None
        try:
            yield
        finally:
            self.equivariance = equivariance

    def prepare(self, images: Tensor, randomness: StepRandomness, *, alpha: bool = False) -> PreparedStep:
        """Draws the changes of a micro-batch of images [B, C, H, W], of the decoder's size.

        With ``alpha`` they are RGBA, and ``downscale`` weights their colours by alpha. (The config refuses
        the other losses that make images smaller.)
        """
        # Equivariance transforms the latents, or makes the images smaller before they are encoded.
        draw, factor = None, self.downsampling_factor * self.upscale
        if self.equivariance is not None:
            draw = self.equivariance.draw(randomness.generator("equivariance"))
        if draw is not None and draw.before_encoding:
            images = draw.transform.images(images, factor)
        latents_draw = None if draw is None or draw.before_encoding else draw
        encoded = downscale(images, self.upscale, alpha=alpha)
        prepared = PreparedStep(encoded, images, transformed=latents_draw is not None)
        if latents_draw is not None:
            prepared.target = latents_draw.transform.images(images, factor)
        if latents_draw is not None or self.noise is not None:
            prepared.arguments["change"] = partial(self._change, draw=latents_draw, randomness=randomness)
        # The spectral loss. Images that were made smaller have lost their upper spectrum already, and may
        # have few pixels left to lose.
        if self.spectral is not None and (draw is None or not draw.before_encoding):
            divisor = self.spectral.draw(randomness.generator("low pass"))
            prepared.low_passed = low_pass(images, divisor, factor)
            prepared.arguments["low_pass"] = partial(low_pass, factor=divisor)
        return prepared

    def losses(
        self,
        prepared: PreparedStep,
        output: Any,
        encoder_output: CapturedCall | None,
        objective: ReconstructionObjective,
        gradient: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns weighted losses by name, to be added to the others, and detached numbers for the log.

        Args:
            output: of the wrapped autoencoder.
            encoder_output: the call of that layer in the forward.
            objective: compares what the low-passed latents decode to with ``prepared.low_passed``.
            gradient: of the objective with respect to ``output.sample``.
        """
        losses, numbers = {}, {}
        if self.spectral is not None and prepared.low_passed is not None:
            reconstruction = output.low_passed.to(prepared.low_passed.dtype)
            losses["spectral"] = self.spectral.weight * objective(reconstruction, prepared.low_passed)[0]
        if self.alignment is not None and encoder_output is not None:
            aligned = self.alignment
            features = aligned.network(prepared.images, tuple(output.projected.shape[-2:]))
            cosine, similarity = aligned.loss(output.projected, features)
            weight = torch.full_like(cosine, aligned.loss.weight).detach()
            if aligned.loss.adaptive:
                weight = weight * _weight_of_alignment(
                    output.sample, gradient, cosine + similarity, encoder_output
                )
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
            # Noise of the shape that is decoded: a transform would smooth noise that was added before it.
            noise = randomness.normal("latent noise", *latents.shape)
            latents = self.noise(latents, noise, randomness.normal("latent noise strength", len(latents)))
        return latents


def _weight_of_alignment(
    sample: Tensor, gradient: Tensor, loss: Tensor, encoder_output: CapturedCall
) -> Tensor:
    """Returns ‖∇ reconstruction‖ / ‖∇ loss‖ at the encoder's last weight, of gradients averaged over ranks.

    The first gradient takes a backward pass of its own through the decoder, without the decoder's weights.
    """
    # The mean's gradient times the number of values: in float16 the mean's own gradient would vanish.
    count = gradient.numel()
    at_output = []
    for value, seed in ((sample, (gradient * count).to(sample.dtype)), (loss * count, None)):
        (own,) = torch.autograd.grad(value, encoder_output.output, seed, retain_graph=True)
        at_output.append(own.to(gradient.dtype))
    first, second = distributed.all_reduce_mean(encoder_output.weight_gradients(*at_output) / count)
    return adaptive_weight(first, second)


@dataclass
class TrainableOutput(AutoencoderOutput):
    """The autoencoder's output, and what further losses need.

    Attributes:
        low_passed: [B, C, H', W'] what the low-passed latents decode to.
        projected: [B, d, h, w] the latents in the feature space that they are aligned with.
        activations: [B, d, h, w] of some decoder levels, in the widths of a teacher's.
    """

    low_passed: Tensor | None = None
    projected: Tensor | None = None
    activations: list[Tensor] | None = None


class TrainableAutoencoder(nn.Module):
    """An autoencoder with everything else that learns with it: one module to wrap, save and optimize.

    Only a wrapped module has its gradients averaged over ranks, clipped and saved, and its forward is called
    once per micro-batch. So this module holds the learned parameters of the loss, such as a likelihood's
    log-variance, and computes everything that a step decodes.

    Args:
        autoencoder: the bare model.
        objective: the loss. Its parameters that take a gradient are shared, not copied.
        learning_rate_scale: their learning rate, as a multiple of the autoencoder's.
        projection: maps latents to the features they are aligned with. It learns as the autoencoder does.
        matched: maps activations of the decoder to those of a teacher. It learns in the same way.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        objective: nn.Module,
        *,
        learning_rate_scale: float = 1.0,
        projection: nn.Module | None = None,
        matched: MatchedLevels | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.learned = nn.ParameterDict(
            {
                name.replace(".", "_"): parameter
                for name, parameter in objective.named_parameters()
                if parameter.requires_grad
            }
        )
        self.learning_rate_scale = learning_rate_scale
        self.projection = projection
        self.matched = matched

    def forward(
        self, *arguments: Any, low_pass: Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> Any:
        """Returns the autoencoder's output; a ``TrainableOutput`` if there is more to compute.

        Args:
            low_pass: makes latents smaller. They are decoded too, but a codebook does not count them.
        """
        with captured_outputs([] if self.matched is None else self.matched.layers) as activations:
            output = self.autoencoder(*arguments, **options)
        if low_pass is None and self.projection is None and self.matched is None:
            return output
        latents = output.latents
        return TrainableOutput(
            **output,
            low_passed=None if low_pass is None else self._decode_uncounted(low_pass(latents)),
            projected=None if self.projection is None else self.projection(latents),
            activations=None if self.matched is None else self.matched(activations),
        )

    def _decode_uncounted(self, latents: Tensor) -> Tensor:
        quantizer = getattr(self.autoencoder, "quantize", None)
        if not isinstance(quantizer, Quantizer):
            return self.autoencoder.decode(latents).sample  # type: ignore[operator]
        frozen, quantizer.frozen = quantizer.frozen, True
        try:
            return self.autoencoder.decode(latents).sample  # type: ignore[operator]
        finally:
            quantizer.frozen = frozen

    def set_apart(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the learned parameters to a group with their own rate and without weight decay.

        Args:
            optimizer: a new one, over this module's parameters.
        """
        learned = list(self.learned.values())
        if not learned:
            return
        known = {id(parameter) for parameter in learned}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        optimizer.add_param_group(
            {"params": learned, "weight_decay": 0.0, "lr_scale": self.learning_rate_scale}
        )
