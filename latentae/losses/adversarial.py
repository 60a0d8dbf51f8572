"""Adversarial losses, their schedule and adaptive weight, and the regularisers LeCAM and R1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae import distributed


def hinge_generator(fake: Tensor) -> Tensor:
    """−E D(x̂), a scalar from the logits of reconstructions."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E relu(1 − D(x)) + E relu(1 + D(x̂))), a scalar from two sets of logits (Esser et al. 2021)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating_generator(fake: Tensor) -> Tensor:
    """E softplus(−D(x̂)) = −E log σ(D(x̂)), a scalar (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
    return F.softplus(-fake).mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E softplus(−D(x)) + E softplus(D(x̂))), a scalar: the cross-entropy, halved as the hinge is."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def least_squares_generator(fake: Tensor) -> Tensor:
    """½ E (D(x̂) − 1)², a scalar (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    return 0.5 * (fake - 1).square().mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E (D(x) − 1)² + E D(x̂)²), a scalar (same equation)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses on logits of any shape, one for each player.

    Attributes:
        generator: from the logits of reconstructions.
        discriminator: from the logits of images and of reconstructions.
        boundary: the logit above which the discriminator takes an image for real.
    """

    generator: Callable[[Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]
    boundary: float = 0.0


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_generator, hinge_discriminator),
    "non_saturating": AdversarialLoss(non_saturating_generator, non_saturating_discriminator),
    "least_squares": AdversarialLoss(least_squares_generator, least_squares_discriminator, boundary=0.5),
}
"""What `loss.adversarial.type` may name."""


@dataclass
class AdversarialTerms:
    """The weight of the adversarial loss, and the steps at which each side learns: optimizer steps, from 0.

    Attributes:
        loss: what each side learns from.
        weight: the configured weight, which the adaptive weight multiplies.
        adaptive: whether the ratio of gradient norms at the last layer multiplies ``weight``.
        min_adaptive_weight, max_adaptive_weight: what that ratio is clamped to.
        start_step: the step at which the autoencoder first sees the discriminator.
        ramp_steps: the number of steps from there over which the weight rises linearly; 0: no ramp.
        discriminator_warmup_steps: how many steps earlier the discriminator starts to learn.
        update_every: the discriminator learns at its first step and every so many steps after it.
    """

    loss: AdversarialLoss = ADVERSARIAL_LOSSES["hinge"]
    weight: float = 0.8
    adaptive: bool = True
    min_adaptive_weight: float = 0.0
    max_adaptive_weight: float = 1e4
    start_step: int = 0
    ramp_steps: int = 0
    discriminator_warmup_steps: int = 0
    update_every: int = 1

    @property
    def first_discriminator_step(self) -> int:
        """The step at which the discriminator starts to learn."""
        return max(0, self.start_step - self.discriminator_warmup_steps)

    def discriminator_learns(self, step: int) -> bool:
        """Whether ``step`` trains the discriminator."""
        since = step - self.first_discriminator_step
        return since >= 0 and since % self.update_every == 0

    def discriminator_updates(self, step: int) -> int:
        """Returns how many steps before ``step`` have trained the discriminator."""
        return max(0, -(-(step - self.first_discriminator_step) // self.update_every))

    def autoencoder_learns(self, step: int) -> bool:
        """Whether ``step`` trains the autoencoder against the discriminator."""
        return step >= self.start_step

    def weight_at(self, step: int) -> float:
        """Returns the weight at ``step``: 1/n of it at the first of n ramp steps, all from the n-th on."""
        if step < self.start_step:
            return 0.0
        return self.weight * min(1.0, (step - self.start_step + 1) / max(1, self.ramp_steps))


def last_layer_gradient(
    layer: nn.Conv2d | nn.ConvTranspose2d, inputs: Tensor, output_gradient: Tensor
) -> Tensor:
    """Returns the gradient of a loss with respect to a convolution's weight, without a backward pass.

    Args:
        layer: the decoder's last convolution, which keeps height and width, or multiplies them by the stride
            if it is a transposed one.
        inputs: [B, C, H, W], the layer's input.
        output_gradient: the loss's gradient at the layer's output. If the output was cropped at its right and
            bottom afterwards, the gradient at the crop.

    Returns:
        a tensor of the weight's shape, in the dtype of the output's gradient.
    """
    is_transposed = isinstance(layer, nn.ConvTranspose2d)
    enlarged = layer.stride if is_transposed else (1, 1)
    height, width = (side * times for side, times in zip(inputs.shape[-2:], enlarged, strict=True))
    missing = (0, width - output_gradient.shape[-1], 0, height - output_gradient.shape[-2])
    if any(missing):
        output_gradient = F.pad(output_gradient, missing)
    inputs = inputs.to(output_gradient.dtype)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        output_gradient,
        inputs,
        layer.weight.to(output_gradient.dtype),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        is_transposed,
        layer.output_padding,
        layer.groups,
        [False, True, False],
    )
    return gradient


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, minimum: float = 0.0, maximum: float = 1e4
) -> Tensor:
    """Returns λ = clamp(‖∇ nll‖ / (‖∇ g‖ + 1e-4), minimum, maximum) (VQGAN, Esser et al. 2021, equation 7).

    λ balances the adversarial loss against the reconstruction loss.

    Args:
        reconstruction_gradient, adversarial_gradient: the two losses' gradients at the decoder's last layer;
            with several ranks, averaged over them.
        minimum: keeps the adversarial loss active when the gradients of the others are small.
        maximum: keeps λ finite when the adversarial gradient vanishes.

    Returns:
        a scalar without a gradient.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(minimum, maximum).detach()


class LeCAM(nn.Module):
    """LeCAM: E relu(D(x) − ā(x̂))² + E relu(ā(x) − D(x̂))² (Tseng et al. 2021, arXiv 2104.03310).

    ā are moving averages of mean logits. A discriminator that memorises a small data set drives the two sets
    of logits apart without limit. This term, added to its loss, keeps them close. Once per optimizer step the
    averages follow the mean over its micro-batches and ranks, all of the same size: ā ← γ ā + (1 − γ) E D.
    The first step only initialises them and does not have the term.

    Args:
        weight: the term's factor in the discriminator's loss.
        decay: γ, in [0, 1).

    Raises:
        ValueError: a decay outside [0, 1).
    """

    averages: Tensor  # [2] of real and of fake logits
    started: Tensor
    pending: Tensor  # [3] sums of both means over the micro-batches of this step, and how many these are

    def __init__(self, weight: float, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, but must be at least 0 and less than 1")
        self.weight = weight
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("pending", torch.zeros(3), persistent=False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The unweighted term, a scalar, from logits of any shape; 0 before the first ``commit``."""
        average_real, average_fake = self.averages
        term = F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
        return torch.where(self.started, term, 0.0)

    @torch.no_grad()
    def observe(self, real: Tensor, fake: Tensor) -> None:
        """Adds the logits of a micro-batch to what the next ``commit`` takes in."""
        means = torch.stack([real.mean(), fake.mean(), torch.ones_like(real.mean())])
        self.pending += means.to(self.pending)

    @torch.no_grad()
    def commit(self, accepted: Tensor | bool = True) -> None:
        """Updates the averages from what was observed since the last call. Every rank must call it.

        Args:
            accepted: whether the step was made. If not, what was observed is dropped. A boolean scalar on the
                device, or a bool, the same on every rank.
        """
        *sums, count = distributed.all_reduce_sum(self.pending)
        self.pending.zero_()
        latest = torch.stack(sums) / count.clamp(min=1)
        followed = torch.where(self.started, self.averages.lerp(latest, 1 - self.decay), latest)
        # Chosen, not multiplied: what is not accepted may be NaN.
        taken = (count > 0) & accepted
        self.averages.copy_(torch.where(taken, followed, self.averages))
        self.started.logical_or_(taken)


def squared_slope(
    logits: Tensor, images: Tensor, loss_scale: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Returns E ‖∇ₓ Σₚ Dₚ(x)‖² / P, with P logits per image. It can be differentiated again.

    With one logit per image this is E ‖∇ₓ D(x)‖². For a patch discriminator with patches that do not overlap
    it is the mean over patches of each patch's squared gradient norm, so a weight means the same at every
    image size.

    Args:
        logits: [B, ...], computed from ``images`` by a network that can be differentiated twice.
        images: [B, C, H, W], with ``requires_grad``.
        loss_scale: multiplies a scalar by the loss scale of float16 training, as ``GradScaler.scale`` does;
            None without one. The gradient is then that of the mean logit times the scale, as in any loss, and
            divided by both afterwards. If it overflows, a lower scale helps.

    Returns:
        the mean over images, in float32 at least, whatever the dtype of the logits.
    """
    if loss_scale is None:
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    else:
        factor = loss_scale(torch.ones((), device=logits.device)) / logits.numel()
        (gradient,) = torch.autograd.grad(logits.to(factor.dtype).sum() * factor, images, create_graph=True)
        gradient = gradient.to(factor.dtype) / factor
    return gradient.square().sum() / logits.numel()


@dataclass(frozen=True)
class R1:
    """R1 (Mescheder et al. 2018, arXiv 1801.04406): γ/2 times the discriminator's squared gradient at images.

    It is applied in every k-th update only, and k times as strong. The average over updates is that of the
    whole penalty at a fraction of its cost (StyleGAN2, Karras et al. 2020, arXiv 1912.04958, section 3.1).
    The paper's changed Adam parameters do not apply: they compensate for separate penalty steps, and here the
    penalty is part of the discriminator's loss.

    Attributes:
        weight: γ.
        every: k.
    """

    weight: float
    every: int = 16

    def due(self, update: int) -> bool:
        """Returns whether the update with this number, from 0, has the penalty."""
        return update % self.every == 0

    @property
    def factor(self) -> float:
        """The factor of the squared gradient in an update that has the penalty."""
        return 0.5 * self.weight * self.every
