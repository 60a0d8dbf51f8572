from typing import Any

import pytest

from latentae.config import ConfigError, LeCAMConfig, LikelihoodConfig, LossConfig
from latentae.config.describe import known_keys
from latentae.losses.adversarial import ADVERSARIAL_LOSSES
from tests.config.example import KLVAE, config


def reconstruction(**keys: Any) -> Any:
    return config({"loss.reconstruction": keys}).loss.reconstruction


def kl(**keys: Any) -> Any:
    return config({**KLVAE, "loss.kl": keys}).loss.kl


def test_terms_are_left_out_by_default() -> None:
    loss = LossConfig.model_validate({"reconstruction": {"type": "l1"}})
    assert {name for name in LossConfig.model_fields if getattr(loss, name) is not None} == {"reconstruction"}
    assert loss.reconstruction.weight == 1.0


def test_keys_and_defaults_of_each_reconstruction_loss() -> None:
    likelihood = {"weight": 1.0, "learned": True, "learning_rate_scale": 100.0, "scale_perceptual": False}
    expected: dict[str, dict[str, Any]] = {
        "l1": {"weight": 1.0},
        "l2": {"weight": 1.0},
        "charbonnier": {"weight": 1.0, "epsilon": 1e-3},
        "gaussian": {**likelihood, "log_variance": 0.0},
        "laplace": {**likelihood, "log_scale": 0.0},
    }
    for name, keys in expected.items():
        assert reconstruction(type=name).model_dump() == {"type": name, **keys}
        assert isinstance(reconstruction(type=name), LikelihoodConfig) == ("learned" in keys)


def test_defaults_of_the_divergence() -> None:
    defaults = {"weight": 1e-6, "schedule": None, "divergence": "forward", "free_bits": None}
    assert kl().model_dump() == {**defaults, "initial_log_variance": None}
    schedule = kl(schedule={"type": "cyclical", "cycle_steps": 25}).schedule
    assert (schedule.cycle_steps, schedule.cycles, schedule.ratio) == (25, 4, 0.5)
    assert kl(free_bits={"nats": 2}).free_bits.per == "channel"


def test_the_papers_numbers_are_the_defaults_of_the_losses_of_latents() -> None:
    blocks = {"loss.equivariance": {}, "loss.alignment": {}, "loss.spectral": {}, "data.image_size": 256}
    loss = config(blocks).loss.model_dump()
    assert loss["equivariance"] == {
        "probability": 0.5,
        "min_scale": 0.25,
        "rotate": True,
        "low_resolution_probability": 0.25,
    }
    assert loss["alignment"] == {
        "network": "facebook/dinov2-large",
        "precision": None,
        "weight": 0.1,
        "adaptive": True,
        "cosine_margin": 0.5,
        "similarity_margin": 0.25,
    }
    assert loss["spectral"] == {"weight": 0.25, "factors": (2, 4)}


def test_published_defaults_of_the_adversarial_and_perceptual_loss() -> None:
    loss = config({"loss.perceptual": {"type": "lpips"}}).loss.model_dump()
    assert loss["adversarial"] == {
        "type": "hinge",
        "weight": 0.8,
        "adaptive": True,
        "min_adaptive_weight": 0.0,
        "max_adaptive_weight": 1e4,
        "start_step": 10,
        "ramp_steps": 0,
        "discriminator_warmup_steps": 0,
        "lecam": None,
    }
    assert LeCAMConfig(weight=0.001).decay == 0.999
    assert loss["perceptual"] == {"type": "lpips", "trunk": "vgg", "weight": 1.0, "precision": None}
    logits = config({"loss.perceptual": {"type": "lpips_logits"}}).loss.model_dump()["perceptual"]
    added = {"classifier": "convnext_small", "classifier_weights": None, "logits_weight": 0.1}
    assert logits == {**loss["perceptual"], "type": "lpips_logits", **added}


def test_the_adversarial_losses_are_those_that_exist() -> None:
    (key,) = known_keys()["loss.adversarial.type"]
    assert key.type == f"one of {', '.join(ADVERSARIAL_LOSSES)}"


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("reconstruction", {"type": "l1", "epsilon": 0.1}, "epsilon"),
        ("reconstruction", {"type": "laplace", "log_variance": -1.0}, "log_variance"),
        ("reconstruction", {"type": "charbonnier", "epsilon": 0}, r"epsilon` is 0.*> 0"),
        ("reconstruction", {"type": "gaussian", "log_variance": 200}, r"in \[-30.*, 20"),
        ("reconstruction", {"type": "huber"}, "one of l1, l2, charbonnier, gaussian, laplace"),
        ("kl", {"schedule": {"type": "linear"}}, "warmup_steps"),
        ("kl", {"schedule": {"type": "linear", "warmup_steps": 0}}, ">= 1"),
        ("kl", {"schedule": {"type": "cyclical", "cycle_steps": 5, "ratio": 0}}, r"in \(0, 1\]"),
        ("kl", {"free_bits": {"nats": 0}}, "> 0"),
        ("kl", {"initial_log_variance": -31}, r"in \[-30.*, 20"),
        ("kl", {"divergence": "backward"}, "one of forward, reverse, jeffreys"),
        ("equivariance", {"probability": 0.0}, "loss.equivariance.probability"),
        ("equivariance", {"min_scale": 1.5}, "loss.equivariance.min_scale"),
        ("latent_noise", {}, "loss.latent_noise.scale"),
        ("latent_noise", {"scale": 0.0}, "loss.latent_noise.scale"),
        ("alignment", {"cosine_margin": 2.0}, "loss.alignment.cosine_margin"),
        ("spectral", {"factors": []}, "loss.spectral.factors"),
        ("spectral", {"factors": [1]}, "loss.spectral.factors"),
        ("adversarial", {"type": "hinge", "start_step": 0, "lecam": {}}, r"lecam\.weight"),
    ],
)
def test_bad_values_are_named(section: str, keys: dict[str, Any], message: str) -> None:
    model = KLVAE if section == "kl" else {}
    with pytest.raises(ConfigError, match=message):
        config({**model, f"loss.{section}": keys})
