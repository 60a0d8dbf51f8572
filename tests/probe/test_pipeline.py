import json

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline, VQModel

from latentae import VQVAE
from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.generation import sample_images
from latentae.probe.pipeline import build_pipeline, check_labels, pipeline_autoencoder
from tests.probe.conftest import tiny_model


def by_channel(kind="kl"):
    return tiny_model(kind, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5])


def shifted(kind):
    return tiny_model(kind, shift_factor=0.7)


@pytest.mark.parametrize(
    ("model", "stock"),
    [
        (tiny_model("kl"), AutoencoderKL),
        (tiny_model("kl", use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.3), AutoencoderKL),
        (shifted("kl"), AutoencoderKL),
        (by_channel(), AutoencoderKL),
        (tiny_model("vq"), VQModel),
        (shifted("vq"), VQModel),
    ],
)
def test_decodes_what_to_latents_gives_by_its_scale_alone(model, stock):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        latents = model.to_latents(images, torch.Generator().manual_seed(1))
        found = pipeline_autoencoder(model)
        assert type(found.vae) is stock
        assert found.offset.tolist() == [0, 0, 0, 0]
        decoded = found.vae.decode(latents / found.vae.config.scaling_factor).sample
        assert torch.allclose(decoded, model.from_latents(latents), atol=2e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_mean_that_cannot_be_folded_is_left_in_the_latents():
    quantizer = {"type": "fsq", "levels": [5, 5, 5, 5]}
    model = VQVAE(
        **{
            k: v for k, v in tiny_model("kl").config.items() if k in ("block_out_channels", "norm_num_groups")
        },
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        quantizer=quantizer,
        scaling_factor=0.8,
        shift_factor=0.5,
    ).eval()
    found = pipeline_autoencoder(model)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert found.offset.tolist() == pytest.approx([0.4] * 4)
    with torch.no_grad():
        latents = model.to_latents(images)
        seen = latents + found.offset[:, None, None]
        decoded = found.vae.decode(seen / found.vae.config.scaling_factor).sample
        assert torch.allclose(decoded, model.from_latents(latents), atol=1e-5)


def test_models_that_have_no_one_scale():
    with pytest.raises(ValueError, match="the scale of its latents is not known: measure it with"):
        pipeline_autoencoder(tiny_model(scaling_factor=None))
    with pytest.raises(ValueError, match="a VQ model takes one scale for all channels"):
        pipeline_autoencoder(by_channel("vq"))
    with pytest.raises(ValueError, match="this is a Linear"):
        pipeline_autoencoder(torch.nn.Linear(1, 1))


def test_saved_and_opened_by_diffusers_alone(tmp_path):
    denoiser = build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0)
    with torch.no_grad():
        denoiser.proj_out_2.weight.normal_(generator=torch.Generator().manual_seed(0))
    vae = pipeline_autoencoder(tiny_model("vq")).vae
    pipeline = build_pipeline(denoiser, vae, ["disc", "stripe"])
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline"
    assert index["vae"] == ["diffusers", "VQModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is DiTPipeline
    assert loaded.get_label_ids(["stripe"]) == [1]
    loaded.set_progress_bar_config(disable=True)
    expected, found = (
        torch.cat(list(sample_images(p, [0, 1, 1], seed=4, steps=3))) for p in (pipeline, loaded)
    )
    assert torch.equal(found, expected)


def test_of_order_one_the_sampler_is_eulers():
    """One step of the scheduler is x + (t' − t) v for a velocity that does not change."""
    pipeline = build_pipeline(build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0), tiny_model())
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    moving = (1 - scheduler.sigmas[0]) * latents + scheduler.sigmas[0] * noise
    for number, time in enumerate(scheduler.timesteps):
        moving = scheduler.step(noise - latents, time, moving).prev_sample
        sigma = scheduler.sigmas[number + 1]
        assert torch.allclose(moving, (1 - sigma) * latents + sigma * noise, atol=1e-5)
    assert torch.allclose(moving, latents, atol=1e-5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]


def test_more_classes_than_the_pipeline_knows():
    check_labels(1000)
    with pytest.raises(ValueError, match="1001 classes, but a DiTPipeline takes 1000: use --unconditional"):
        check_labels(1001)
