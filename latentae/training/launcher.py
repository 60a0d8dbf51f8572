"""Settings that a launcher passes in environment variables: checked against the config, without torch.

`accelerate launch` and its config file set variables, which Accelerate obeys unless the program says
otherwise. The config decides what a run does, so variables that contradict it are refused. Only the precision
may be left to the launcher.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from latentae.config import ConfigError, RunConfig

_TRUE = ("1", "true", "yes", "y", "on", "t")

_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallelism)",
}
"""Switches that give weights, gradients and optimizers to another engine."""

_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_COMPILER = "ACCELERATE_DYNAMO_BACKEND"


def apply_launcher_settings(config: RunConfig, environment: Mapping[str, str] = os.environ) -> RunConfig:
    """Returns the config with the launcher's `mixed_precision` if its own is null or `auto`.

    `auto` stays if the launcher says `no`.

    Args:
        environment: the variables that the launcher has set.

    Raises:
        ConfigError: the launcher's settings contradict the config; one problem per line.
    """
    precision = environment.get(_PRECISION, "").lower() or "no"
    problems = list(_contradictions(config, environment, precision))
    if problems:
        raise ConfigError("\n".join(problems))
    if config.mixed_precision not in (None, "auto") or (config.mixed_precision, precision) == ("auto", "no"):
        return config
    return config.model_copy(update={"mixed_precision": precision})


def _contradictions(config: RunConfig, environment: Mapping[str, str], precision: str) -> Iterator[str]:
    # Engines that would split the model over devices.
    for name, engine in _ENGINES.items():
        if environment.get(name, "").lower() in _TRUE:
            yield (
                f"{name} is {environment[name]}: the launcher asks for {engine}, but runs train with DDP, "
                "where every device holds the whole model; answer no to it in `accelerate config`, leave out "
                f"the launcher's option, or unset {name}"
            )
    # Numbers that both the launcher and the config set.
    for name, key in {_ACCUMULATION: "gradient_accumulation_steps", _CLIPPING: "max_grad_norm"}.items():
        told, value = environment.get(name), getattr(config, key)
        if told is not None and told != "auto" and not _is_number(told, value):
            shown = "null" if value is None else f"{value:g}"
            yield (
                f"`{key}` is {shown}, and the launcher sets {name} to {told}; set {key}={told}, or unset "
                f"{name}"
            )
    # A compiler of whole models.
    backend = environment.get(_COMPILER, "no")
    if backend.lower() not in ("", "no"):
        yield (
            f"{_COMPILER} is {backend}: the launcher asks for torch.compile of whole models, but a training "
            "step must see inside them; use compile=true, which compiles their blocks, and leave out the "
            f"launcher's option, or unset {_COMPILER}"
        )
    # The precision. `accelerate launch` says `no` if nobody has chosen anything.
    if precision not in ("no", "bf16", "fp16"):
        yield (
            f"{_PRECISION} is {precision}, which is not supported; start with --mixed_precision bf16, fp16 "
            "or no"
        )
    elif config.mixed_precision not in (None, "auto") and precision not in ("no", config.mixed_precision):
        yield (
            f"`mixed_precision` is {config.mixed_precision}, and the launcher was told {precision} "
            f"({_PRECISION}); set mixed_precision={precision}, or start with --mixed_precision "
            f"{config.mixed_precision}"
        )


def _is_number(text: str, value: float | None) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return value is None and text.lower() in ("", "none")
