import math
from typing import Any

import pytest

from latentae.config import config_warnings
from latentae.config.schema.checks import SMALLEST_MEASURED
from latentae.config.schema.loss import SMALLEST_IMAGE
from latentae.evaluation import metrics
from latentae.losses import perceptual
from latentae.training import trainer
from tests.config.example import KLVAE, VQVAE, assert_one_problem, assert_valid, config, problems

FROZEN = {**KLVAE, "freeze_encoder": True, "model.pretrained": "model", "data.image_size": 256}


def assert_one_warning(changes: dict[str, Any], *parts: Any) -> None:
    (line,) = config_warnings(config(changes))
    assert [part for part in parts if str(part) not in line] == [], line


def test_all_contradictions_are_reported_together() -> None:
    found = problems({"data.image_size": 66, "model.norm_num_groups": 48, "discriminator": None})
    assert [line.split("`")[1] for line in found] == [
        "data.image_size",
        "model.norm_num_groups",
        "discriminator",
    ]


# Checkpoints and compiled networks


@pytest.mark.parametrize(("validate", "save"), [(100, 100), (50, 100), (300, 100)])
def test_the_best_checkpoint_is_among_the_measured_ones(validate: int, save: int) -> None:
    keys = {"best_metric": "validation_psnr", "validate_every": validate, "checkpoint_every": save}
    assert config(keys).best_metric == "validation_psnr"


@pytest.mark.parametrize("validate", [None, 150])
def test_a_best_checkpoint_that_is_not_measured(validate: int | None) -> None:
    keys = {"checkpoint_every": 100, "validate_every": validate}
    assert config(keys).best_metric is None
    best = {**keys, "best_metric": "validation_psnr"}
    assert_one_problem(
        best, "best_metric", "validation_psnr", "checkpoint_every", "set `validate_every: 100`"
    )


def test_sizes_that_change_are_not_compiled() -> None:
    resolutions = {"data.resolutions": [[64, 64], [64, 96]]}
    assert config(resolutions).compile is False
    assert_one_problem({"compile": True, **resolutions}, "compile", "has 2 sizes", "`data.resolutions: null`")
    scaled = {"compile": True, "loss.equivariance": {"min_scale": 0.5}}
    assert_one_problem(scaled, "compile", "min_scale: 0.5", "`loss.equivariance.min_scale: 1`")


@pytest.mark.parametrize(
    "changes",
    [{}, {"data.resolutions": [[64, 96], [64, 96]]}, {"loss.equivariance": {"min_scale": 1}}],
)
def test_one_size_is_compiled(changes: dict[str, Any]) -> None:
    assert config({"compile": True, **changes}).compile


# Images


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
    changes = {"data.image_size": size}
    assert_one_problem(changes, "data.image_size", size, "multiple of 4", "model.block_out_channels", remedy)


def test_every_resolution_is_a_multiple_of_the_factor() -> None:
    sizes = {"data.resolutions": [[64, 64], [64, 66]]}
    assert_one_problem(sizes, "data.resolutions", "[64, 66]", "multiple of 4", "use [64, 64] or [64, 68]")
    small = {**VQVAE, "data.resolutions": [[3, 3]], "loss.perceptual": None}
    assert_one_problem(small, "data.resolutions", "use [4, 4]")
    assert config({"data.resolutions": [[32, 64], [64, 32]]}).data.resolutions == ((32, 64), (64, 32))


@pytest.mark.parametrize(("trunk", "too_small", "fits"), [("alex", 28, 32), ("vgg", 12, 16)])
def test_resolutions_must_suit_the_perceptual_trunk(trunk: str, too_small: int, fits: int) -> None:
    lpips = {"type": "lpips", "trunk": trunk}
    sizes = {**VQVAE, "data.resolutions": [[too_small, 64]]}
    changes = {**sizes, "loss.perceptual": lpips}
    assert_one_problem(
        changes, "data.resolutions", f"[{too_small}, 64]", f"trunk: {trunk}", f"use {fits} or more"
    )
    assert_valid({**VQVAE, "data.resolutions": [[fits, 64]], "loss.perceptual": lpips})
    assert_valid({**sizes, "loss.perceptual": None})


@pytest.mark.parametrize("trunk", [None, "vgg", "alex"])
@pytest.mark.parametrize("size", [8, 28, [64, 28]])
def test_images_too_small_to_measure_are_refused_at_the_start(size: Any, trunk: str | None) -> None:
    loss = {**VQVAE, "loss.perceptual": trunk and {"type": "lpips", "trunk": trunk}}
    assert_one_problem({"data.image_size": size, **loss}, "data.image_size", size, "31", "use 32 or more")
    assert config({"data.image_size": 32, **loss}).data.image_size == 32


def test_smallest_images_are_those_the_trunks_can_be_computed_on() -> None:
    def alex(side: int) -> int:
        for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0)):
            side = (side + 2 * padding - kernel) // stride + 1
        return side

    assert (alex(SMALLEST_IMAGE["alex"]), alex(SMALLEST_IMAGE["alex"] - 1)) == (1, 0)
    assert (SMALLEST_IMAGE["vgg"] // 2**4, (SMALLEST_IMAGE["vgg"] - 1) // 2**4) == (1, 0)


def test_the_smallest_image_is_what_the_measures_ask_for() -> None:
    needed = metrics._WINDOW_SIZE, perceptual.MINIMUM_SIZE[trainer._VALIDATION_TRUNK]
    assert (needed, max(needed)) == ((11, 31), SMALLEST_MEASURED)


def test_ranges_are_low_and_high() -> None:
    assert_one_problem({"data.downscale": [3, 1]}, "data.downscale", "[3.0, 1.0]", "use [1.0, 3.0]")
    assert config({"data.downscale": [2, 2]}).data.downscale == (2.0, 2.0)
    for low in (5.0, 6.0):
        assert_one_problem({"data.value_range": [low, 5]}, "data.value_range", f"[{low}, 5.0]", "low < high")
    assert config({"data.value_range": [-1, 1]}).data.value_range == (-1.0, 1.0)


def test_color_jitter_needs_colours_and_something_to_change() -> None:
    jitter = {"data.color_jitter": {"hue": 0.1}}
    assert config(jitter).data.color_jitter is not None
    rgba = {**jitter, "model.in_channels": 4, "data.alpha": True}
    assert config(rgba).data.color_jitter is not None
    for channels in (1, 4, 13):
        words = ("`model.in_channels` is {channels}", "data.color_jitter=null", "model.in_channels=3")
        changes = {**jitter, "model.in_channels": channels}
        assert_one_problem(changes, "data.color_jitter", *(word.format(channels=channels) for word in words))
    for section in ({}, {"probability": 0.0, "hue": 0.5}):
        assert_one_problem(
            {"data.color_jitter": section}, "data.color_jitter", "nothing", "data.color_jitter=null"
        )


# Model and quantizer


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
    parts = (f"is {groups}", f"divide {offending} in", f"{remedy} divides every width")
    assert_one_problem(changes, "model.norm_num_groups", *parts)
    assert config(changes | {"model.norm_num_groups": remedy}).model.norm_num_groups == remedy


def test_attention_has_a_value_per_level() -> None:
    switches = {"model.attention_levels": [True, False]}
    assert_one_problem(
        switches, "model.attention_levels", "[true, false]", "3 levels", "model.block_out_channels"
    )


def test_a_frozen_encoder_must_have_learned_something() -> None:
    assert_one_problem({"freeze_encoder": True}, "freeze_encoder", "model.pretrained", "freeze_encoder=false")
    assert config({"freeze_encoder": True, "model.pretrained": "some/model"}).freeze_encoder


def test_more_codes_than_can_be_counted() -> None:
    levels = [16, 16, 16, 16, 16, 2]
    fsq = {"type": "fsq", "levels": levels}
    parts = (levels, 2097152, 1048576, "`model.quantizer.type: grouped`")
    assert_one_problem({"model.quantizer": fsq}, "model.quantizer.levels", *parts)
    grouped = {"type": "grouped", "groups": 2, "member": fsq}
    assert_one_problem({"model.quantizer": grouped}, "model.quantizer.member.levels", *parts)
    assert_valid({"model.quantizer": {"type": "fsq", "levels": levels[:-1]}})


def test_groups_that_cannot_share_the_five_channels() -> None:
    ema: dict[str, Any] = {"type": "ema", "num_codes": 4}
    grouped = {"type": "grouped", "groups": 2, "member": ema}
    parts = ("is 2", "`model.latent_channels` (5)", "`model.quantizer.member.code_dim`")
    assert_one_problem({"model.quantizer": grouped}, "model.quantizer.groups", *parts)
    assert_valid({"model.quantizer": {**grouped, "member": {**ema, "code_dim": 3}}})
    assert_valid({"model.quantizer": {**grouped, "groups": 5}})
    assert_valid({"model.quantizer": {**grouped, "member": {"type": "lfq", "bits": 3}}})


# Adversarial loss and discriminator


def test_vqgan_needs_an_adversarial_loss_and_vqvae_none() -> None:
    assert_one_problem({"loss.adversarial": None}, "loss.adversarial", "is null", "`model.class: VQVAE`")
    assert_one_problem({"model.class": "VQVAE"}, "loss.adversarial", "is set", "`model.class: VQGAN`")


def test_discriminator_goes_with_the_adversarial_loss() -> None:
    assert_one_problem({"discriminator": None}, "discriminator", "is null", "`loss.adversarial` needs one")
    without = {"model.class": "VQVAE", "loss.adversarial": None}
    assert_one_problem(without, "discriminator", "is set", "without `loss.adversarial`")
    assert config(VQVAE).discriminator is None


def test_discriminator_warmup_fits_before_the_start() -> None:
    key = "loss.adversarial.discriminator_warmup_steps"
    assert config({key: 10}).max_steps == 100
    assert_one_problem({key: 11}, key, "is 11", "10 steps", "`loss.adversarial.start_step`")


def test_floor_is_not_above_the_ceiling() -> None:
    low, high = "loss.adversarial.min_adaptive_weight", "loss.adversarial.max_adaptive_weight"
    assert_one_problem({low: 5.0, high: 4.0}, low, "is 5", f"`{high}`, 4")
    assert config({low: 5.0, high: 5.0}).loss.adversarial is not None


def test_each_augmentation_once() -> None:
    changes = {"discriminator.augment": ["color", "cutout", "color"]}
    assert_one_problem(changes, "discriminator.augment", "[color, cutout, color]", "use [color, cutout]")


# Losses


def test_only_a_posterior_has_a_divergence() -> None:
    assert_one_problem(
        {"loss.kl": {"weight": 1e-6}}, "loss.kl", "`model.class: VQGAN`", "`model.class: KLVAE`"
    )


def test_a_scaled_perceptual_loss_needs_one() -> None:
    changes: dict[str, Any] = {"loss.reconstruction": {"type": "laplace", "scale_perceptual": True}}
    assert config(changes).loss.perceptual is not None
    key = "loss.reconstruction.scale_perceptual"
    assert_one_problem({**changes, "loss.perceptual": None}, key, "`loss.perceptual` is null", f"{key}=false")


@pytest.mark.parametrize("name", ["equivariance", "alignment", "spectral"])
def test_a_frozen_encoder_cannot_learn_from_losses_of_the_latents(name: str) -> None:
    changes = {**FROZEN, f"loss.{name}": {}}
    assert_one_problem(changes, f"loss.{name}", "freeze_encoder", f"loss.{name}=null or freeze_encoder=false")
    assert config({**FROZEN, "loss.latent_noise": {"scale": 0.1}}).loss.latent_noise is not None


def test_nothing_to_transform() -> None:
    nothing = {"loss.equivariance": {"min_scale": 1.0, "rotate": False}}
    assert_one_problem(nothing, "loss.equivariance.min_scale", "is 1", "rotate", "loss.equivariance=null")
    assert config({"loss.equivariance": {"min_scale": 1.0}}).loss.equivariance is not None


FEATURES = {"type": "frozen_features", "optimizer": {"type": "adamw", "learning_rate": 1e-4}}


def test_frozen_features_need_rgb_and_whole_groups() -> None:
    changes = {"discriminator": FEATURES, "model.in_channels": 4}
    assert_one_problem(changes, "discriminator.type", "`model.in_channels` is 4", "RGB", "type=patchgan")
    changes = {"discriminator": {**FEATURES, "head_channels": 24}}
    assert_one_problem(changes, "discriminator.head_channels", "is 24", "8 groups", "use 32")


@pytest.mark.parametrize(
    ("discriminator", "needed", "key"),
    [
        ({"type": "patchgan", "num_layers": 4}, 48, "num_layers"),
        ({"type": "wavelet", "num_layers": 6}, 64, "num_layers"),
        ({**FEATURES, "network": "alex"}, 31, "network"),
        ({**FEATURES, "network": "vgg16"}, 16, "network"),
        ({**FEATURES, "network": "facebook/dinov2-small"}, 1, "network"),
    ],
)
def test_the_discriminator_takes_the_smallest_images(discriminator, needed, key) -> None:
    section = {**discriminator, "optimizer": FEATURES["optimizer"]}
    fits = math.ceil(needed / 4) * 4
    changes = {"discriminator": section, "loss.perceptual": None, "data.resolutions": [[fits, 64]]}
    assert config(changes).discriminator is not None
    if fits > 4:
        small = {**changes, "data.resolutions": [[fits - 4, 64]]}
        assert_one_problem(
            small, f"discriminator.{key}", f"{needed} pixels", f"have {fits - 4}", "data.image_size"
        )


def test_alignment_needs_rgb() -> None:
    changes = {**KLVAE, "loss.alignment": {}, "model.in_channels": 4}
    assert_one_problem(changes, "loss.alignment", "`model.in_channels` is 4", "RGB", "loss.alignment=null")


def test_images_must_stay_large_enough_for_the_losses() -> None:
    """The example's discriminator has 3 halving layers and its trunk is VGG16."""
    sizes = {"data.image_size": 64, "loss.perceptual.trunk": "vgg"}
    equivariance = {**sizes, "loss.equivariance": {}}
    assert_one_problem(equivariance, "loss.equivariance.min_scale", "is 0.25", "64 pixels to 16", "need 24")
    assert config({**sizes, "loss.equivariance": {"min_scale": 0.375}}).loss.equivariance is not None
    assert config({**KLVAE, **equivariance}).loss.equivariance is not None
    spectral = {**KLVAE, **sizes, "loss.spectral": {"factors": [2, 8]}}
    assert_one_problem(spectral, "loss.spectral.factors", "has 8", "64 pixels to 8", "needs 16")
    # The discriminator does not see them.
    assert config({**sizes, "loss.spectral": {"factors": [2, 4]}}).loss.spectral is not None


def test_a_factor_is_at_most_the_number_of_latents() -> None:
    without = {**KLVAE, "loss.perceptual": None, "data.image_size": 32}
    spectral = {**without, "loss.spectral": {"factors": [2, 16]}}
    assert_one_problem(spectral, "loss.spectral.factors", "has 16", "32 pixels", "8 latents")
    assert config({**without, "loss.spectral": {"factors": [8]}}).loss.spectral is not None


def test_the_smallest_of_several_sizes_counts() -> None:
    sizes = {"data.image_size": 128, "data.resolutions": [[128, 128], [64, 192]]}
    changes = {**sizes, "loss.perceptual.trunk": "vgg", "loss.equivariance": {}}
    assert_one_problem(changes, "loss.equivariance.min_scale", "64 pixels to 16")


# Warnings


def test_nothing_to_warn_of() -> None:
    assert config_warnings(config()) == []
    assert config_warnings(config(VQVAE)) == []
    assert config_warnings(config({"loss.adversarial.start_step": 99, "optimizer.warmup_steps": 99})) == []
    assert config_warnings(config({"loss.adversarial.ramp_steps": 90})) == []


def test_steps_that_the_run_does_not_reach() -> None:
    both = config({"loss.adversarial.start_step": 100, "optimizer.warmup_steps": 100})
    keys = [line.split("`")[1] for line in config_warnings(both)]
    assert keys == ["loss.adversarial.start_step", "optimizer.warmup_steps"]
    ramp, warmup = {"loss.adversarial.ramp_steps": 91}, {"optimizer.warmup_steps": 100}
    assert_one_warning(ramp, "`loss.adversarial.ramp_steps` is 91", "step 10", "`max_steps` is 100")
    assert_one_warning(warmup, "`optimizer.warmup_steps` is 100", "`max_steps` is 100", "learning_rate")


def test_a_limit_of_an_adaptive_weight_that_is_off() -> None:
    changes = {"loss.adversarial.min_adaptive_weight": 0.1, "loss.adversarial.adaptive": False}
    assert_one_warning(
        changes, "`loss.adversarial.min_adaptive_weight` is 0.1", "`loss.adversarial.adaptive`"
    )


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        (None, None),
        ({"type": "linear", "warmup_steps": 99}, None),
        ({"type": "linear", "warmup_steps": 100}, ("warmup_steps` is 100", "`max_steps` is 100")),
        ({"type": "cyclical", "cycle_steps": 25}, None),
        ({"type": "cyclical", "cycle_steps": 26}, ("4 cycles of 26 steps", "`max_steps` is 100")),
    ],
)
def test_kl_schedules_that_the_run_does_not_finish(schedule: Any, parts: tuple[str, ...] | None) -> None:
    changes = {**KLVAE, "loss.kl": {"schedule": schedule}}
    if parts is None:
        assert config_warnings(config(changes)) == []
    else:
        assert_one_warning(changes, "`loss.kl.schedule", *parts)


def test_an_elbo_of_transformed_images_is_none() -> None:
    likelihood = {"loss.reconstruction": {"type": "laplace"}, "loss.kl": {}}
    changes = {**KLVAE, **likelihood, "loss.equivariance": {}, "data.image_size": 128}
    assert_one_warning(changes, "`loss.equivariance`", "laplace", "`elbo_nats`", "`bits_per_dimension`")


# The teacher


def test_a_teacher_is_named_and_teaches() -> None:
    assert config({**FROZEN, "loss.teacher": {}}).loss.teacher is not None
    assert config({"loss.teacher": {"model": "place"}}).loss.teacher is not None
    assert_one_problem({"loss.teacher": {}}, "loss.teacher.model", "`model.pretrained`", "loss.teacher=null")
    idle = {**FROZEN, "loss.teacher": {"output_weight": 0}}
    assert_one_problem(idle, "loss.teacher.output_weight", "`loss.teacher.latents_weight` are all 0")


def test_features_of_a_teacher_need_its_latents_and_levels() -> None:
    features = {"loss.teacher": {"features_weight": 0.5, "levels": [0, 2]}}
    assert config({**FROZEN, **features}).loss.teacher is not None
    key = "loss.teacher.features_weight"
    learning = {**KLVAE, "model.pretrained": "model", **features}
    assert_one_problem(learning, key, "is 0.5", "`freeze_encoder` is false", "loss.teacher.features_weight=0")
    assert_one_problem({**FROZEN, **features, "compile": True}, key, "compile=false")
    for levels in ([3], [1, 1]):
        wrong = {"features_weight": 0.5, "levels": levels}
        assert_one_problem({**FROZEN, "loss.teacher": wrong}, "loss.teacher.levels", levels, "from 0 to 2")


LEARNED = {"loss.teacher": {"model": "place", "latents_weight": 2, "features_weight": 1}}


def test_learned_latents_need_an_encoder_that_learns_them_alone() -> None:
    assert config({**KLVAE, **LEARNED}).loss.teacher is not None
    key = "loss.teacher.latents_weight"
    assert_one_problem(
        {**FROZEN, **LEARNED}, key, "is 2", "`freeze_encoder` is true", "loss.teacher.latents_weight=0"
    )
    assert_one_problem({**VQVAE, **LEARNED}, key, "`model.class: VQVAE` has a codebook")
    sections: dict[str, Any] = {"alignment": {}, "spectral": {"factors": [2]}}
    for name, section in sections.items():
        assert_one_problem({**KLVAE, **LEARNED, f"loss.{name}": section}, key, f"loss.{name}=null")


def test_nothing_trains_the_variance_beside_learned_latents() -> None:
    assert config_warnings(config({**KLVAE, **LEARNED})) == []
    assert_one_warning(
        {**KLVAE, **LEARNED, "loss.kl": {}}, "`loss.teacher.latents_weight` is 2", "loss.kl=null"
    )
