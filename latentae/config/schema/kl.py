"""The KL term: its weight and the weight's course, which divergence, and what of it is free."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from latentae.config.schema.base import Count, Positive, PositiveOrZero, Section


class LinearScheduleConfig(Section):
    """The weight rises from 0 in a straight line, once."""

    type: Literal["linear"]
    warmup_steps: Count
    """Optimizer steps until the whole weight counts."""


class CyclicalScheduleConfig(Section):
    """The weight rises from 0 again and again (arXiv 1903.10145)."""

    type: Literal["cyclical"]
    cycle_steps: Count
    """Optimizer steps of a cycle; in the paper `max_steps` / `cycles`."""
    cycles: Count = 4
    """How many cycles; after them the whole weight counts."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a cycle in which the weight rises; in the rest the whole weight counts."""


KLScheduleConfig: TypeAlias = Annotated[
    LinearScheduleConfig | CyclicalScheduleConfig, Field(discriminator="type")
]


class FreeBitsConfig(Section):
    """A divergence, averaged over the batch, that costs nothing (arXiv 1606.04934)."""

    nats: Positive
    """How much of it, of each group of an image's latents; 1 bit is 0.693 nats."""
    per: Literal["channel", "image"] = "channel"
    """The groups: each channel, summed over its positions, as in the paper; or all latents of an image."""


class KLConfig(Section):
    """Divergence of a KLVAE's posterior q(z|x) and the prior p = N(0, I) (arXiv 1312.6114)."""

    weight: PositiveOrZero = 1e-6
    """Factor of the divergence, in nats summed over the latents of an image, against the reconstruction loss
    summed over its values: latent diffusion's convention, in which Stable Diffusion has 1e-6. The other terms
    are means per value, so the sum over latents is divided by the number of values of the image. Beside a
    likelihood, 1 is the ELBO's weight."""
    schedule: KLScheduleConfig | None = None
    """Course of the weight; null: the whole weight from the start."""
    divergence: Literal["forward", "reverse", "jeffreys"] = "forward"
    """forward: KL(q || p), as in the ELBO; reverse: KL(p || q), which forbids certain posteriors; jeffreys:
    the sum of both."""
    free_bits: FreeBitsConfig | None = None
    """Divergence that costs nothing; null: all of it counts."""
