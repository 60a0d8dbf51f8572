"""The discriminator in training: what the autoencoder learns from it, what it learns itself, and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae import distributed
from latentae.discriminators import DiffAugment
from latentae.losses.adversarial import (
    R1,
    AdversarialTerms,
    LeCAM,
    adaptive_weight,
    last_layer_gradient,
    squared_slope,
)
from latentae.losses.compositing import composites
from latentae.models.lean.blocks import LeanLastConv
from latentae.training.randomness import StepRandomness

GRADIENT_LOSSES = frozenset({"r1"})
"""Names of losses made of gradients under the loss scale, which overflow if the scale is too large."""
_TRUNK = "trunk_sha256"


class CapturedCall:
    """A context that captures the first call of a convolution, to compute gradients of its weight later.

    Args:
        layer: the convolution.
        gain: the derivative of what gradients are given for with respect to the layer's output.

    Attributes:
        output: what the layer returned, with its graph.
    """

    output: Tensor

    def __init__(self, layer: nn.Conv2d, gain: float = 1.0) -> None:
        self.layer, self.gain = layer, gain
        self._seen = False
        self._given: Tensor

    @property
    def inputs(self) -> Tensor:
        """The layer's input, detached. A lean layer computes it again from its own input."""
        return self.layer.convolved(self._given) if isinstance(self.layer, LeanLastConv) else self._given

    def weight_gradients(self, *output_gradients: Tensor) -> Tensor:
        """Returns the gradients of several losses with respect to the layer's weight, stacked, on this rank.

        Args:
            output_gradients: each loss's gradient at the layer's output, or at images that a pixel shuffle
                makes of it.
        """
        with torch.no_grad():
            inputs = self.inputs
            gradients = map(self._at_output, output_gradients)
            return torch.stack([last_layer_gradient(self.layer, inputs, g) for g in gradients])

    def _at_output(self, gradient: Tensor) -> Tensor:
        upscale = math.isqrt(self.layer.out_channels // gradient.shape[1])
        gradient = gradient if self.gain == 1 else gradient * self.gain
        return gradient if upscale == 1 else F.pixel_unshuffle(gradient, upscale)

    def __enter__(self) -> CapturedCall:
        self._seen = False
        self._hook = self.layer.register_forward_hook(self._capture)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _capture(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._seen:
            self._given, self.output, self._seen = arguments[0].detach(), output, True


@dataclass
class Adversary:
    """The discriminator and how its loss enters.

    Attributes:
        discriminator: the wrapped network, from images [B, C, H, W] to logits. Of RGBA images it sees three
            composites each, [3 · B, 3, H, W].
        terms: losses, weight and schedule.
        augmentation: what changes images and reconstructions before the discriminator sees them, or None.
        lecam: a regulariser of its logits, or None.
        r1: a penalty on its gradient, or None.
        reuse_forward: whether the discriminator learns from the logits that the autoencoder learned from.
            False if a forward changes the network.
        alpha: whether images are RGBA.
        loss_scale: multiplies a scalar by the loss scale of float16 training; None without one.
        trunk_hash: of the weights of the discriminator's frozen network, which checkpoints record but do not
            hold; None without one.
    """

    discriminator: nn.Module
    terms: AdversarialTerms = field(default_factory=AdversarialTerms)
    augmentation: DiffAugment | None = None
    lecam: LeCAM | None = None
    r1: R1 | None = None
    reuse_forward: bool = True
    alpha: bool = False
    loss_scale: Callable[[Tensor], Tensor] | None = None
    trunk_hash: str | None = None
    recorded_hash: str | None = field(default=None, init=False)  # in the checkpoint that was loaded

    # What the autoencoder learns

    def logits(self, reconstruction: Tensor, randomness: StepRandomness) -> Tensor:
        """Returns D(x̂). Within a micro-batch the augmentation of x̂ is the same in each call."""
        return self.discriminator(self._augment(reconstruction, randomness, "augmented reconstruction"))

    def generator_gradient(self, reconstruction: Tensor, fake: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the generator's loss, without a gradient, and ∂gen/∂x̂.

        Args:
            reconstruction: x̂, a leaf.
            fake: ``logits`` of it. Their graph is kept if the discriminator will learn from it.
        """
        loss = self.terms.loss.generator(fake)
        keeps_graph = self.reuse_forward and self.terms.discriminator_learns(step)
        # Differentiate a sum over logits and divide afterwards: the mean's gradient would vanish in float16.
        (gradient,) = torch.autograd.grad(loss * fake.numel(), reconstruction, retain_graph=keeps_graph)
        return loss.detach(), gradient / fake.numel()

    def weight(
        self, step: int, last_layer: CapturedCall, gradient: Tensor, adversarial_gradient: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns λ at a step, and numbers for the log. Every rank calls it.

        Args:
            step: optimizer steps done so far.
            last_layer: the call of the decoder's last convolution.
            gradient, adversarial_gradient: ∂nll/∂x̂ and ∂gen/∂x̂.
        """
        terms = self.terms
        # Filled on the device: to copy a number from the host would wait for it.
        weight = torch.full((), terms.weight_at(step), dtype=gradient.dtype, device=gradient.device)
        if not terms.adaptive:
            return weight, {"adversarial_weight": weight}
        # The gradients are averaged over ranks before their norms are taken, so λ is the same on all of them.
        gradients = last_layer.weight_gradients(gradient, adversarial_gradient)
        first, second = distributed.all_reduce_mean(gradients)
        factor = adaptive_weight(first, second, terms.min_adaptive_weight, terms.max_adaptive_weight)
        return weight * factor, {"adversarial_weight": weight * factor, "adaptive_factor": factor}

    # What the discriminator learns

    def discriminator_loss(
        self, images: Tensor, reconstruction: Tensor, fake: Tensor | None, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the discriminator's whole loss of a micro-batch, for one backward, and its numbers.

        Args:
            images, reconstruction: [B, C, H, W] in [−1, 1], without gradients.
            fake: ``logits`` of the reconstruction, with their graph, or None.

        Returns:
            the loss, and detached scalars: the adversarial loss alone, statistics of the logits, and the
            unweighted regularisers.
        """
        if fake is None or not self.reuse_forward:
            fake = self.logits(reconstruction.detach(), randomness)
        inputs = self._augment(images, randomness, "augmented images")
        r1 = self._r1_due(randomness.step)
        if r1 is not None:
            inputs = inputs.detach().requires_grad_()
        real = self.discriminator(inputs)
        loss = self.terms.loss.discriminator(real, fake)
        numbers = {"discriminator": loss.detach(), **self._logit_statistics(real.detach(), fake.detach())}
        if self.lecam is not None:
            distance = self.lecam(real, fake)
            self.lecam.observe(real, fake)
            loss = loss + self.lecam.weight * distance
            numbers["lecam"] = distance.detach()
        if r1 is not None:
            slope = squared_slope(real, inputs, self.loss_scale)
            loss = loss + r1.factor * slope
            numbers["r1"] = slope.detach()
        return loss, numbers

    def _augment(self, images: Tensor, randomness: StepRandomness, purpose: str) -> Tensor:
        if self.alpha:
            images = composites(images, randomness.background_colours(len(images)))
        if self.augmentation is None:
            return images
        draws = randomness.uniform(purpose, len(images), self.augmentation.num_draws)
        return self.augmentation(images, draws)

    def _r1_due(self, step: int) -> R1 | None:
        update = self.terms.discriminator_updates(step)
        return self.r1 if self.r1 is not None and self.r1.due(update) else None

    def _logit_statistics(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Returns mean logits, their gap, and the share of each side's logits that is right."""
        boundary = self.terms.loss.boundary
        means = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return {
            **means,
            "logit_gap": means["logits_real"] - means["logits_fake"],
            "accuracy_real": (real > boundary).to(torch.float32).mean(),
            "accuracy_fake": (fake < boundary).to(torch.float32).mean(),
        }

    # What a checkpoint holds besides the discriminator and its optimizer

    def state_dict(self) -> dict[str, Any]:
        """Returns LeCAM's averages, if there are any, and the hash of the frozen network, likewise."""
        averages = {} if self.lecam is None else self.lecam.state_dict()
        return averages if self.trunk_hash is None else {**averages, _TRUNK: self.trunk_hash}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the averages, and the hash that ``check`` compares. LeCAM may start afresh."""
        self.recorded_hash = state.get(_TRUNK)
        averages = {name: value for name, value in state.items() if name != _TRUNK}
        if self.lecam is not None and averages:
            self.lecam.load_state_dict(averages)

    def check(self) -> None:
        """Checks that the discriminator's frozen network is the one that its heads were trained on.

        Raises:
            ValueError: the checkpoint that was loaded records another one.
        """
        if self.recorded_hash is not None and self.recorded_hash != self.trunk_hash:
            raise ValueError(
                "discriminator.network has other weights (sha256 "
                f"{str(self.trunk_hash)[:12]}) than when the checkpoint was saved "
                f"({self.recorded_hash[:12]}), so the discriminator's heads do not fit it; give the weights "
                "of that time"
            )


Means = Mapping[str, float]

_STATISTICS = ("logits_real", "logit_gap", "accuracy_real", "accuracy_fake")
_WON = 0.98  # accuracy on both sides
_UNDECIDED = 0.02  # how far from one half the mean of both accuracies may be
_STILL = 0.02  # how far logits may move; the losses have margins of about one


class AdversaryWatch:
    """Warns when a discriminator is of no use: it has won, or it cannot tell images from reconstructions.

    It looks at the means of each log line and warns once of a state that lasts for several lines. It warns
    of the same state again only after as many lines without it.

    Args:
        patience: how many lines in a row make a finding, or end one.
    """

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self._lines: list[Means] = []
        self._said: str | None = None
        self._since = 0

    def see(self, means: Means) -> str | None:
        """Takes the means of a log line, and returns a warning if there is one to give.

        Args:
            means: by the names they are logged under. Without ``logit_gap`` the discriminator has not learned
                since the last line, and without ``generator`` the autoencoder does not learn from it yet.
        """
        if "logit_gap" not in means:
            return None
        self._lines = [*self._lines, means][-self.patience :]
        sentence = _finding(self._lines) if len(self._lines) == self.patience else None
        kind = None if sentence is None else sentence.split(":")[0]
        if kind is not None and kind != self._said:
            self._said, self._since = kind, 0
            return sentence
        self._since = self._since + 1 if kind is None else 0
        # The last of ``patience`` lines without leaves the window after as many again.
        if self._since >= 2 * self.patience - 1:
            self._said = None
        return None


def _finding(lines: Sequence[Means]) -> str | None:
    mean = {name: sum(line[name] for line in lines) / len(lines) for name in _STATISTICS}
    if all(
        "generator" in line and min(line["accuracy_real"], line["accuracy_fake"]) > _WON for line in lines
    ):
        return (
            f"the discriminator has won: over the last {len(lines)} log lines it was right about "
            f"{mean['accuracy_real']:.1%} of the images and {mean['accuracy_fake']:.1%} of the "
            f"reconstructions (logit gap {mean['logit_gap']:.3g}), so it no longer guides the autoencoder. "
            "For the next run try discriminator.augment='[color, translation, cutout]', "
            "loss.adversarial.lecam.weight=0.001, discriminator.r1.weight=0.1, discriminator.update_every=2 "
            "or a lower discriminator.optimizer.learning_rate"
        )
    movement = max(line["logits_real"] for line in lines) - min(line["logits_real"] for line in lines)
    undecided = all(
        abs(line["logit_gap"]) < _STILL
        and abs((line["accuracy_real"] + line["accuracy_fake"]) / 2 - 0.5) < _UNDECIDED
        for line in lines
    )
    if undecided and movement < _STILL:
        return (
            f"the discriminator cannot tell images from reconstructions: over the last {len(lines)} log "
            f"lines both had mean logits near {mean['logits_real']:.3g}, so the autoencoder learns nothing "
            "from it. For the next run try a higher discriminator.optimizer.learning_rate, a lower "
            "discriminator.r1.weight or loss.adversarial.lecam.weight, fewer of discriminator.augment, or "
            "more loss.adversarial.discriminator_warmup_steps"
        )
    return None
