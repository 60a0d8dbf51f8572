from typing import Any

import pytest

from latentae.config import ConfigError, config_from_mapping
from tests.config.example import REMOVED, mapping


def kl(**keys: Any) -> Any:
    changes = {
        "model.class": "KLVAE",
        "model.quantizer": REMOVED,
        "loss.adversarial": None,
        "discriminator": None,
        "loss.kl": keys,
    }
    return config_from_mapping(mapping(changes)).loss.kl


def test_defaults() -> None:
    assert kl().model_dump() == {
        "weight": 1e-6,
        "schedule": None,
        "divergence": "forward",
        "free_bits": None,
    }
    schedule = kl(schedule={"type": "cyclical", "cycle_steps": 25}).schedule
    assert (schedule.cycle_steps, schedule.cycles, schedule.ratio) == (25, 4, 0.5)
    assert kl(free_bits={"nats": 2}).free_bits.per == "channel"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": {"type": "linear"}}, "warmup_steps"),
        ({"schedule": {"type": "linear", "warmup_steps": 0}}, ">= 1"),
        ({"schedule": {"type": "cyclical", "cycle_steps": 5, "ratio": 0}}, r"in \(0, 1\]"),
        ({"free_bits": {"nats": 0}}, "> 0"),
        ({"divergence": "backward"}, "one of forward, reverse, jeffreys"),
    ],
)
def test_bad_values_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kl(**keys)
