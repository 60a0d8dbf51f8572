from typing import Any

import pytest

from latentae.config import ConfigError, config_from_mapping, config_warnings
from tests.config.example import REMOVED, config, mapping

KLVAE = {
    "model.class": "KLVAE",
    "model.quantizer": REMOVED,
    "loss.adversarial": None,
    "discriminator": None,
}


def test_a_scaled_perceptual_loss_needs_one() -> None:
    changes: dict[str, Any] = {"loss.reconstruction": {"type": "laplace", "scale_perceptual": True}}
    assert config(changes).loss.perceptual is not None
    with pytest.raises(ConfigError) as caught:
        config({**changes, "loss.perceptual": None})
    assert str(caught.value) == (
        "`loss.reconstruction.scale_perceptual` is true, and `loss.perceptual` is null; give it its keys "
        "(`type: lpips`) or use loss.reconstruction.scale_perceptual=false"
    )


@pytest.mark.parametrize(
    ("schedule", "warnings"),
    [
        (None, []),
        ({"type": "linear", "warmup_steps": 99}, []),
        (
            {"type": "linear", "warmup_steps": 100},
            [
                "`loss.kl.schedule.warmup_steps` is 100 and `max_steps` 100: the divergence never has all of "
                "`loss.kl.weight`"
            ],
        ),
        ({"type": "cyclical", "cycle_steps": 25}, []),
        (
            {"type": "cyclical", "cycle_steps": 26},
            [
                "`loss.kl.schedule` has 4 cycles of 26 steps and `max_steps` is 100: the run ends within a "
                "cycle"
            ],
        ),
    ],
)
def test_schedules_that_the_run_does_not_see_the_end_of(schedule: Any, warnings: list[str]) -> None:
    assert (
        config_warnings(config_from_mapping(mapping({**KLVAE, "loss.kl": {"schedule": schedule}})))
        == warnings
    )
