"""Optimizers and the learning rate's course. A second optimizer makes `OptimizerConfig` a union."""

from typing import Literal, TypeAlias

from latentae.config.schema.base import Betas, CountOrZero, Positive, PositiveOrZero, Section, Share


class AdamWConfig(Section):
    """Adam with decoupled weight decay (arXiv 1711.05101) and a learning rate schedule."""

    type: Literal["adamw"]
    learning_rate: Positive
    """Step size after the warmup; used as it stands, not multiplied by the batch size."""
    betas: Betas = (0.5, 0.9)
    """Decay of the averages of the gradient and of its square (0.5, 0.9: taming-transformers)."""
    weight_decay: PositiveOrZero = 0.0
    """Share of each weight, times the learning rate, removed per step."""
    epsilon: Positive = 1e-8
    """Added to the denominator of the update."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warmup: constant, or a half cosine that ends at `max_steps`."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    final_scale: Share = 0.0
    """Share of the learning rate that is left at the end of the cosine schedule."""


OptimizerConfig: TypeAlias = AdamWConfig
