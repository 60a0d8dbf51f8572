from typing import Any

import pytest

from latentae.config import ConfigError, config_warnings
from latentae.config.schema.checks_data import SMALLEST_IMAGE
from tests.config.example import VQVAE, config


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(changes)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        (66, "use 64 or 68"),
        ([64, 67], "use [64, 64] or [64, 68]"),
        ([33, 67], "use [32, 64] or [36, 68]"),
        (31, "use 32"),
    ],
)
def test_image_size_must_be_a_multiple_of_the_factor(size: Any, remedy: str) -> None:
    assert problems({"data.image_size": size}) == [
        f"`data.image_size` is {size}, not a multiple of 4, by which a model with 3 "
        f"`model.block_out_channels` shrinks it; {remedy}"
    ]


def test_image_smaller_than_the_factor() -> None:
    (problem,) = problems({"data.resolutions": [[3, 3]], "loss.perceptual": None})
    assert problem.endswith("; use [4, 4]")


@pytest.mark.parametrize(("trunk", "too_small", "fits"), [("alex", 28, 32), ("vgg", 12, 16)])
def test_resolutions_must_suit_the_perceptual_trunk(trunk: str, too_small: int, fits: int) -> None:
    perceptual = {"type": "lpips", "trunk": trunk}
    sizes = {"data.resolutions": [[too_small, too_small]]}
    (problem,) = problems({**sizes, "loss.perceptual": perceptual})
    assert problem == (
        f"`data.resolutions` has [{too_small}, {too_small}], too small for the perceptual loss with "
        f"`loss.perceptual.trunk: {trunk}`; use {fits} or more, or loss.perceptual=null"
    )
    config({"data.resolutions": [[fits, 64]], "loss.perceptual": perceptual})
    config({**sizes, "loss.perceptual": None})


def test_smallest_images_are_those_the_trunks_can_be_computed_on() -> None:
    def alex(side: int) -> int:
        for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0)):
            side = (side + 2 * padding - kernel) // stride + 1
        return side

    assert (alex(SMALLEST_IMAGE["alex"]), alex(SMALLEST_IMAGE["alex"] - 1)) == (1, 0)
    assert (SMALLEST_IMAGE["vgg"] // 2**4, (SMALLEST_IMAGE["vgg"] - 1) // 2**4) == (1, 0)


@pytest.mark.parametrize(
    ("groups", "widths", "offending", "remedy"),
    [
        (24, [32, 48, 64], "32 and 64", 16),
        (48, [32, 64], "32 and 64", 32),
        (16, [32, 40], "40", 8),
        (2, [9, 4], "9", 1),
    ],
)
def test_norm_groups_must_divide_every_width(
    groups: int, widths: list[int], offending: str, remedy: int
) -> None:
    changes = {"model.norm_num_groups": groups, "model.block_out_channels": widths}
    assert problems(changes) == [
        f"`model.norm_num_groups` is {groups}, which does not divide {offending} in "
        f"`model.block_out_channels`; {remedy} divides every width there"
    ]
    assert config(changes | {"model.norm_num_groups": remedy}).model.norm_num_groups == remedy


def test_attention_has_a_value_per_level() -> None:
    assert problems({"model.attention_levels": [True, False]}) == [
        "`model.attention_levels` is [true, false]; it needs one true or false for each of the 3 levels of "
        "`model.block_out_channels`"
    ]


def test_vqgan_needs_an_adversarial_loss_and_vqvae_none() -> None:
    (problem,) = problems({"loss.adversarial": None})
    assert problem.startswith("`loss.adversarial` is null, and `model.class: VQGAN` is trained with one")
    (problem,) = problems({"model.class": "VQVAE"})
    assert problem.startswith("`loss.adversarial` is set, and `model.class: VQVAE` is trained without one")
    assert problem.endswith("or use `model.class: VQGAN`")


def test_discriminator_goes_with_the_adversarial_loss() -> None:
    (problem,) = problems({"discriminator": None})
    assert problem.startswith("`discriminator` is null, and `loss.adversarial` needs one")
    (problem,) = problems({"model.class": "VQVAE", "loss.adversarial": None})
    assert problem.startswith("`discriminator` is set, and without `loss.adversarial` nothing trains it")
    assert config(VQVAE).discriminator is None


def test_discriminator_warmup_fits_before_the_start() -> None:
    assert config({"loss.adversarial.discriminator_warmup_steps": 10}).max_steps == 100
    (problem,) = problems({"loss.adversarial.discriminator_warmup_steps": 11})
    assert problem.startswith(
        "`loss.adversarial.discriminator_warmup_steps` is 11, more than the 10 steps before"
    )


def test_downscale_range_is_not_turned_round() -> None:
    (problem,) = problems({"data.downscale": [3, 1]})
    assert problem.endswith("use [1.0, 3.0]")
    assert config({"data.downscale": [2, 2]}).data.downscale == (2.0, 2.0)


def test_all_contradictions_are_reported_together() -> None:
    found = problems({"data.image_size": 66, "model.norm_num_groups": 48, "discriminator": None})
    assert [line.split("`")[1] for line in found] == [
        "data.image_size",
        "model.norm_num_groups",
        "discriminator",
    ]


def test_warnings() -> None:
    assert config_warnings(config()) == []
    assert config_warnings(config(VQVAE)) == []
    assert config_warnings(config({"loss.adversarial.start_step": 100, "optimizer.warmup_steps": 100})) == [
        "`loss.adversarial.start_step` is 100 and `max_steps` 100: the adversarial loss never starts",
        "`optimizer.warmup_steps` is 100 and `max_steps` 100: the learning rate never reaches "
        "`optimizer.learning_rate`",
    ]
    assert config_warnings(config({"loss.adversarial.start_step": 99, "optimizer.warmup_steps": 99})) == []


def test_only_a_posterior_has_a_divergence() -> None:
    (problem,) = problems({"loss.kl": {"weight": 1e-6}})
    assert problem == (
        "`loss.kl` is set, and `model.class: VQGAN` has no posterior to measure; set it to null or use "
        "`model.class: KLVAE`"
    )
