from typing import Any

import pytest
from pydantic import ValidationError

from latentae.config import (
    AdamW8bitConfig,
    AdamWConfig,
    ConfigError,
    DataConfig,
    FrozenFeaturesConfig,
    PatchGANConfig,
    R1Config,
    RunConfig,
    WaveletConfig,
)
from latentae.config.schema.data import ColorJitterConfig
from latentae.config.schema.run import GuardConfig
from tests.config.example import config, mapping


def test_defaults_of_a_run() -> None:
    run = config()
    assert (run.output_dir, run.seed, run.resume, run.trackers) == ("run", 0, "auto", ("tensorboard",))
    assert (run.gradient_accumulation_steps, run.mixed_precision, run.deterministic) == (1, None, False)
    assert (run.ema_decay, run.max_grad_norm) == (None, None)
    assert (run.guard.max_consecutive, run.guard.min_codebook_usage) == (10, 0.5)


def test_defaults_of_the_data() -> None:
    data = DataConfig(image_size=32)
    assert (data.name, data.split, data.holdout, data.num_workers) == ("photos", "train", 0.05, 2)
    assert (data.max_broken, data.check_images, data.cache_megabytes) == (100, 256, 1024)
    assert (data.streaming, data.shuffle_block, data.max_validation) == (False, 512, 2000)
    assert (data.resolutions, data.value_range, data.downscale) == (None, None, None)
    assert (data.random_flip, data.color_jitter) == (False, None)
    assert ColorJitterConfig().changes_nothing
    assert ColorJitterConfig().probability == 1


def test_defaults_of_the_optimizer() -> None:
    assert AdamWConfig(type="adamw", learning_rate=1).model_dump() == {
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


def test_published_defaults_of_the_discriminator() -> None:
    discriminator = PatchGANConfig(type="patchgan", optimizer=AdamWConfig(type="adamw", learning_rate=1e-4))
    assert (discriminator.base_channels, discriminator.num_layers, discriminator.norm) == (64, 3, "group")
    assert (discriminator.update_every, discriminator.augment, discriminator.r1) == (1, (), None)
    wavelet = WaveletConfig(type="wavelet", optimizer=discriminator.optimizer)
    assert wavelet.model_dump(exclude={"type"}) == discriminator.model_dump(exclude={"type"})
    frozen = FrozenFeaturesConfig(type="frozen_features", optimizer=discriminator.optimizer)
    assert (frozen.network, frozen.head_channels) == ("vgg16", 128)
    assert R1Config(weight=10).every == 16


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


def test_the_type_chooses_the_optimizer_and_each_network_has_its_own() -> None:
    run = config({"optimizer.type": "adamw8bit"})
    assert isinstance(run.optimizer, AdamW8bitConfig)
    assert run.discriminator is not None
    assert isinstance(run.discriminator.optimizer, AdamWConfig)
    with pytest.raises(ValidationError, match="optimizer"):
        PatchGANConfig.model_validate({"type": "patchgan"})


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"final_scale": 1.5}, {"schedule": "linear"}])
def test_ranges_of_the_optimizer(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AdamWConfig.model_validate({"type": "adamw", "learning_rate": 1.0} | wrong)


def test_ranges_of_the_guard() -> None:
    assert GuardConfig(min_codebook_usage=None).min_codebook_usage is None
    for wrong in ({"max_consecutive": 0}, {"min_codebook_usage": 95}):
        with pytest.raises(ValidationError):
            GuardConfig.model_validate(wrong)


def test_sizes_of_the_training_images() -> None:
    assert DataConfig(image_size=32).height_and_width == (32, 32)
    assert DataConfig(image_size=(32, 48)).height_and_width == (32, 48)
    assert DataConfig(image_size=32).training_sizes == ((32, 32),)
    data = DataConfig(image_size=32, resolutions=[[32, 48], [48, 32]])
    assert data.training_sizes == ((32, 48), (48, 32))
    assert DataConfig(image_size=32, holdout=0.5).holdout == 0.5


@pytest.mark.parametrize("wrong", [{"holdout": 0}, {"holdout": 0.51}, {"holdout": -0.1}, {"resolutions": []}])
def test_ranges_of_the_data(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"image_size": 32} | wrong)
