import pytest
from pydantic import ValidationError

from latentae.config import ConfigError, RunConfig
from tests.config.example import config, mapping


def test_defaults() -> None:
    run = config()
    assert (run.output_dir, run.seed, run.resume, run.trackers) == ("run", 0, "auto", ("tensorboard",))
    assert (run.gradient_accumulation_steps, run.mixed_precision, run.deterministic) == (1, None, False)
    assert (run.ema_decay, run.max_grad_norm) == (None, None)


def test_contradictions_are_found_without_a_loader_too() -> None:
    with pytest.raises(ValidationError, match="use 64 or 68"):
        RunConfig.model_validate(mapping({"data.image_size": 66}))


def test_run_is_frozen_and_hashable() -> None:
    assert hash(config()) == hash(config())
    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("hours", [0, 8761, 1e13])
def test_processes_wait_for_a_year_at_most(hours) -> None:
    with pytest.raises(ConfigError, match="process_group_timeout_hours"):
        config({"process_group_timeout_hours": hours})
