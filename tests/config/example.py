"""A small valid config for the tests to vary. Its values are no defaults, so that a lost one shows."""

import copy
from typing import Any

import pytest

from latentae.config import ConfigError, RunConfig, config_from_mapping

_EXAMPLE = {
    "max_steps": 100,
    "batch_size": 3,
    "model": {
        "class": "VQGAN",
        "block_out_channels": [32, 64, 64],
        "norm_num_groups": 16,
        "latent_channels": 5,
        "quantizer": {"type": "vector", "num_codes": 12, "codebook_weight": 2.0},
    },
    "loss": {
        "reconstruction": {"type": "l2"},
        "perceptual": {"type": "lpips", "trunk": "alex"},
        "adversarial": {"type": "hinge", "start_step": 10},
    },
    "discriminator": {"type": "patchgan", "optimizer": {"type": "adamw", "learning_rate": 2e-4}},
    "optimizer": {"type": "adamw", "learning_rate": 1e-3},
    "data": {"image_size": 64},
}

REMOVED = object()
"""As a value of `mapping`: takes the key out."""


def mapping(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The example as YAML would give it, with the values of dotted keys changed."""
    data = copy.deepcopy(_EXAMPLE)
    for path, value in (changes or {}).items():
        *sections, name = path.split(".")
        target: Any = data
        for section in sections:
            target = target[section]
        if value is REMOVED:
            del target[name]
        else:
            target[name] = value
    return data


def config(changes: dict[str, Any] | None = None) -> RunConfig:
    """The example, validated."""
    return config_from_mapping(mapping(changes))


VQVAE = {"model.class": "VQVAE", "loss.adversarial": None, "discriminator": None}
"""Changes that make the example a VQVAE."""

KLVAE = {"model.class": "KLVAE", "model.quantizer": REMOVED, "loss.adversarial": None, "discriminator": None}
"""Changes that make the example a KLVAE."""


def problems(changes: dict[str, Any]) -> list[str]:
    """The lines of the error that the changed example raises."""
    with pytest.raises(ConfigError) as caught:
        config(changes)
    return str(caught.value).splitlines()


def assert_valid(changes: dict[str, Any]) -> None:
    """The changed example has no problem."""
    assert isinstance(config(changes), RunConfig)


def assert_one_problem(changes: dict[str, Any], key: str, *parts: Any) -> None:
    """The changed example has one problem; it starts with the key and names all these values and keys."""
    (line,) = problems(changes)
    assert line.startswith(f"`{key}`"), line
    assert [part for part in parts if str(part) not in line] == [], line
