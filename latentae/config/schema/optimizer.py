"""Optimizers and the learning rate's course. A new one is a section here and its name in the union below."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from latentae.config.schema.base import Betas, CountOrZero, Positive, PositiveOrZero, Section, Share


class _Adam(Section):
    """What Adam's kin share, and the learning rate schedule."""

    type: str
    learning_rate: Positive
    """Step size after the warmup; used as it stands, not multiplied by the batch size."""
    betas: Betas = (0.5, 0.9)
    """Decay of the averages of the gradient and of its square (0.5, 0.9: taming-transformers)."""
    weight_decay: PositiveOrZero = 0.0
    """Share of each weight, norms and biases included, times the learning rate, removed per step (0:
    taming-transformers)."""
    epsilon: Positive = 1e-8
    """Added to the denominator of the update."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Course of the learning rate after the warmup: constant; a half cosine that ends at `max_steps`; or wsd,
    warmup-stable-decay (arXiv 2404.06395): constant, then 1 - sqrt over the last `decay_share`."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    decay_share: Share = 0.2
    """Share of the steps after the warmup over which the wsd schedule falls; what comes before does not
    depend on `max_steps`, so that a run can be continued for longer."""
    final_scale: Share = 0.0
    """Share of the learning rate that is left at the end of the cosine and wsd schedules."""


class AdamWConfig(_Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101) and a learning rate schedule."""

    type: Literal["adamw"]


class AdamW8bitConfig(_Adam):
    """AdamW whose two averages take one byte each instead of four (arXiv 2110.02861); needs bitsandbytes."""

    type: Literal["adamw8bit"]


OptimizerConfig: TypeAlias = Annotated[AdamWConfig | AdamW8bitConfig, Field(discriminator="type")]
