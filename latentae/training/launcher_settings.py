"""Settings that a launcher passes in environment variables: checked against the config, without torch.

`accelerate launch` and its config file set variables that Accelerate obeys where the program leaves room.
The config decides what a run does, so that variables which contradict it are refused. Only the precision may
be left to the launcher. How a run was started is read in start_command.py.
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
"""Switches that hand weights, gradients and optimizers to another engine."""

_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_COMPILER = "ACCELERATE_DYNAMO_BACKEND"


def apply_launcher_settings(config: RunConfig, environment: Mapping[str, str] = os.environ) -> RunConfig:
    """Returns the config with the launcher's `mixed_precision` where its own is null.

    Args:
        environment: the variables that the launcher has set.

    Raises:
        ConfigError: the launcher's settings contradict the config; one problem per line.
    """
    problems = [
        *_engines(environment),
        *_numbers(config, environment),
        *_compiler(environment),
        *_precision(config, environment),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    if config.mixed_precision is not None:
        return config
    return config.model_copy(update={"mixed_precision": _told_precision(environment)})


def _engines(environment: Mapping[str, str]) -> Iterator[str]:
    for name, engine in _ENGINES.items():
        if environment.get(name, "").lower() in _TRUE:
            yield (
                f"{name} is {environment[name]}: the launcher asks for {engine}, but runs train with DDP, "
                "where every device holds the whole model; answer no to it in `accelerate config`, leave out "
                f"the launcher's option, or unset {name}"
            )


def _numbers(config: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    """Problems with numbers that both the launcher and the config set."""
    stated = {
        _ACCUMULATION: ("gradient_accumulation_steps", config.gradient_accumulation_steps),
        _CLIPPING: ("max_grad_norm", config.max_grad_norm),
    }
    for name, (key, value) in stated.items():
        told = environment.get(name)
        if told is not None and told != "auto" and not _is_number(told, value):
            shown = "null" if value is None else f"{value:g}"
            yield (
                f"`{key}` is {shown}, and the launcher sets {name} to {told}; set {key}={told}, or unset "
                f"{name}"
            )


def _is_number(text: str, value: float | None) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return value is None and text.lower() in ("", "none")


def _compiler(environment: Mapping[str, str]) -> Iterator[str]:
    backend = environment.get(_COMPILER, "no")
    if backend.lower() not in ("", "no"):
        yield (
            f"{_COMPILER} is {backend}: the launcher asks for torch.compile of whole models, which a "
            "training step cannot look into; use compile=true, which compiles their blocks, and leave "
            f"out the launcher's option, or unset {_COMPILER}"
        )


def _precision(config: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    told, chosen = _told_precision(environment), config.mixed_precision
    if told not in ("no", "bf16", "fp16"):
        yield (
            f"{_PRECISION} is {told}, which runs do not train in; start with --mixed_precision bf16, "
            "fp16 or no"
        )
    # `no` is what `accelerate launch` says where nobody has chosen anything.
    elif chosen is not None and told not in ("no", chosen):
        yield (
            f"`mixed_precision` is {chosen}, and the launcher was told {told} ({_PRECISION}); set "
            f"mixed_precision={told}, or start with --mixed_precision {chosen}"
        )


def _told_precision(environment: Mapping[str, str]) -> str:
    return environment.get(_PRECISION, "").lower() or "no"
