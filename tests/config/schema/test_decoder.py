"""The section `decoder`: what it may hold, and what it is filled in from."""

from typing import Any

import pytest

from latentae.config import changed_keys, load_config, refused_in_branch
from latentae.config.pretrained import fill_in
from tests.config.example import KLVAE, assert_one_problem, config, mapping

SMALL = {**KLVAE, "decoder": {"widths": [16, 32, 32]}}


def test_valid_sections() -> None:
    assert config(KLVAE).decoder is None
    decoder = config(SMALL).decoder
    assert decoder is not None
    assert (decoder.widths, decoder.layers_per_block, decoder.upscale) == ((16, 32, 32), None, 1)
    assert config({**KLVAE, "decoder": {"upscale": 4}}).data.image_size == 64


def test_a_vq_model_has_none() -> None:
    assert_one_problem({"decoder": {"upscale": 2}}, "decoder", "VQGAN", "set it to null", "KLVAE")


def test_another_number_of_levels() -> None:
    assert_one_problem({**KLVAE, "decoder": {"widths": [16, 32]}}, "decoder.widths", "[16, 32]", "3 levels")


def test_widths_that_the_groups_do_not_divide() -> None:
    changes = {**KLVAE, "decoder": {"widths": [8, 24, 32]}}
    assert_one_problem(changes, "decoder.widths", "norm_num_groups: 16", "8 and 24", "use [16, 32, 32]")


@pytest.mark.parametrize("size", [36, 60])
def test_images_are_multiples_of_the_enlarged_latents(size: int) -> None:
    # 3 levels, and twice: 8 pixels per latent.
    changes: dict[str, Any] = {**KLVAE, "data.image_size": size, "decoder": {"upscale": 2}}
    assert_one_problem(
        changes, "data.image_size", size, "multiple of 8", "times `decoder.upscale: 2`", "use "
    )
    assert config({**KLVAE, "data.image_size": size}).data.image_size == size


def test_images_too_small_for_one_latent() -> None:
    changes = {**KLVAE, "model.block_out_channels": [16] * 5, "data.image_size": 32}
    assert config(changes).data.image_size == 32
    assert_one_problem({**changes, "decoder": {"upscale": 4}}, "data.image_size", "multiple of 64", "use 64")


def test_a_branch_keeps_it() -> None:
    small, usual = config(SMALL), config(KLVAE)
    assert "decoder.widths: (not set) → [16, 32, 32]" in refused_in_branch(usual, small)
    assert refused_in_branch(small, small) == []
    assert "decoder.widths" in changed_keys(small, config({**KLVAE, "decoder": {"widths": [32, 32, 32]}}))


def test_it_is_filled_in_from_the_pretrained_model() -> None:
    theirs = {**mapping(KLVAE)["model"], "decoder": {"widths": [16, 16, 16], "upscale": 2}}
    run = {"model": {"class": "KLVAE", "pretrained": "place"}}
    assert fill_in(run, lambda _: theirs)["decoder"] == {"widths": [16, 16, 16], "upscale": 2}
    assert "decoder" not in fill_in(run, lambda _: theirs)["model"]
    other = fill_in({**run, "decoder": {"upscale": 4}}, lambda _: theirs)["decoder"]
    assert other == {"widths": [16, 16, 16], "upscale": 4}
    usual = mapping(KLVAE)["model"]
    assert "decoder" not in fill_in(run, lambda _: usual)


@pytest.mark.parametrize(
    ("name", "widths", "upscale", "size"),
    [("decoder_small", (64, 128, 256, 256), 1, 256), ("decoder_x2", None, 2, 512)],
)
def test_recipes_of_larger_models(name: str, widths: tuple[int, ...] | None, upscale: int, size: int) -> None:
    recipe = load_config("kl_vae", ["--config", name])
    assert recipe.freeze_encoder
    assert recipe.model.pretrained == "stabilityai/sd-vae-ft-ema"
    assert recipe.decoder is not None
    assert (recipe.decoder.widths, recipe.decoder.upscale, recipe.data.image_size) == (widths, upscale, size)
    assert recipe.batch_size * recipe.gradient_accumulation_steps == 192


def test_the_recipe_of_a_tiny_model() -> None:
    recipe = load_config("kl_vae", ["--config", "decoder_tiny"])
    assert recipe.model.class_ == "TinyAutoencoder"
    assert recipe.model.downsampling_factor == 8  # the teacher's
    assert recipe.loss.teacher is not None
    assert recipe.loss.teacher.model == "stabilityai/sd-vae-ft-mse"
    assert not recipe.freeze_encoder


def test_the_recipe_of_flux2() -> None:
    recipe = load_config("kl_vae", ["--config", "flux2_small_decoder"])
    assert recipe.freeze_encoder
    assert recipe.model.class_ == "Flux2VAE"
    assert recipe.decoder is not None
    assert recipe.decoder.widths == (96, 192, 384, 384)
    assert (recipe.model.latent_channels, recipe.model.block_out_channels) == (32, (128, 256, 512, 512))
    assert recipe.loss.teacher is not None
    assert (recipe.loss.teacher.model, recipe.loss.teacher.output_weight) == (None, 0.5)


CACHED = {
    **KLVAE,
    "freeze_encoder": True,
    "model.pretrained": "place",
    "loss.kl": None,
    "data.latents": "cache",
}


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"freeze_encoder": False}, "freeze_encoder=true"),
        ({"data.streaming": True}, "data.streaming=false"),
        ({"data.downscale": [1, 2]}, "data.downscale=null"),
        ({"data.color_jitter": {"hue": 0.1}}, "data.color_jitter=null"),
        ({"data.resolutions": [[64, 64], [32, 64]]}, "data.resolutions=null"),
        ({"decoder": {"upscale": 2}}, "decoder.upscale=1"),
    ],
)
def test_cached_latents_need_crops_that_stay(changes: dict[str, Any], remedy: str) -> None:
    assert config(CACHED).data.latents == "cache"
    assert_one_problem({**CACHED, **changes}, "data.latents", "cache", remedy, "data.latents=null")
