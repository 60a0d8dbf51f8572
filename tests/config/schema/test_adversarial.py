import pytest
from pydantic import ValidationError

from latentae.config import AdversarialConfig, LeCAMConfig
from latentae.config.reflect import known_keys


def test_defaults_are_the_published_ones() -> None:
    adversarial = AdversarialConfig.model_validate({"type": "hinge", "start_step": 0})
    assert adversarial.model_dump() == {
        "type": "hinge",
        "weight": 0.8,
        "adaptive": True,
        "min_adaptive_weight": 0.0,
        "max_adaptive_weight": 1e4,
        "start_step": 0,
        "ramp_steps": 0,
        "discriminator_warmup_steps": 0,
        "lecam": None,
    }
    assert LeCAMConfig(weight=0.001).decay == 0.999


def test_the_losses_are_those_that_exist() -> None:
    from latentae.losses.adversarial import ADVERSARIAL_LOSSES

    (key,) = known_keys()["loss.adversarial.type"]
    assert key.type == f"one of {', '.join(ADVERSARIAL_LOSSES)}"


def test_lecam_needs_its_weight() -> None:
    with pytest.raises(ValidationError, match=r"lecam\.weight"):
        AdversarialConfig.model_validate({"type": "hinge", "start_step": 0, "lecam": {}})
