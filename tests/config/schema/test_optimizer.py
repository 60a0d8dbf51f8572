import pytest
from pydantic import ValidationError

from latentae.config import AdamW8bitConfig, AdamWConfig
from tests.config.example import config


def test_defaults() -> None:
    optimizer = AdamWConfig(type="adamw", learning_rate=1)
    assert optimizer.model_dump() == {
        "type": "adamw",
        "learning_rate": 1.0,
        "betas": (0.5, 0.9),
        "weight_decay": 0.0,
        "epsilon": 1e-8,
        "schedule": "constant",
        "warmup_steps": 0,
        "decay_share": 0.2,
        "final_scale": 0.0,
    }


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"final_scale": 1.5}, {"schedule": "linear"}])
def test_ranges(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AdamWConfig.model_validate({"type": "adamw", "learning_rate": 1.0} | wrong)


def test_the_type_chooses_the_section() -> None:
    run = config({"optimizer.type": "adamw8bit"})
    assert isinstance(run.optimizer, AdamW8bitConfig)
    assert run.discriminator is not None
    assert isinstance(run.discriminator.optimizer, AdamWConfig)
