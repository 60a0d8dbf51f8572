from typing import Any

import pytest

from latentae.config import ConfigError, config_warnings
from tests.config.example import VQVAE, config


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(changes)
    return str(caught.value).splitlines()


def test_floor_is_not_above_the_ceiling() -> None:
    limits = {"loss.adversarial.min_adaptive_weight": 5.0, "loss.adversarial.max_adaptive_weight": 4.0}
    assert problems(limits) == [
        "`loss.adversarial.min_adaptive_weight` is 5, more than `loss.adversarial.max_adaptive_weight`, 4; "
        "lower the one or raise the other"
    ]
    assert config(limits | {"loss.adversarial.max_adaptive_weight": 5.0}).loss.adversarial is not None


def test_each_augmentation_once() -> None:
    assert problems({"discriminator.augment": ["color", "cutout", "color"]}) == [
        "`discriminator.augment` is [color, cutout, color], and may name each change once; use "
        "[color, cutout]"
    ]


def test_warnings() -> None:
    assert config_warnings(config(VQVAE)) == []
    adversarial = "loss.adversarial."
    assert config_warnings(config({f"{adversarial}ramp_steps": 90})) == []
    assert config_warnings(config({f"{adversarial}ramp_steps": 91})) == [
        "`loss.adversarial.ramp_steps` is 91, from step 10, and `max_steps` 100: the adversarial loss never "
        "has its whole weight"
    ]
    assert config_warnings(
        config({f"{adversarial}min_adaptive_weight": 0.1, f"{adversarial}adaptive": False})
    ) == [
        "`loss.adversarial.min_adaptive_weight` is 0.1 and `loss.adversarial.adaptive` false: there is no "
        "adaptive weight to limit"
    ]
