"""A Flux2VAE as the vae of FLUX.2's pipeline, from text and from an image."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image

from latentae import Flux2VAE
from tests.models.test_flux2 import make_flux2
from tests.pipelines import text
from tests.pipelines.autoencoders import WIDTH


def pipeline_with(vae):
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=2 * 2 * WIDTH,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    pipeline = Flux2KleinPipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=text.qwen(),
        tokenizer=text.chat_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, image=None, output_type="pt"):
    return pipeline(
        image=image,
        prompt="a cat",
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=16,
        text_encoder_out_layers=(1, 2),
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
    ).images


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("from_image", [False, True])
def test_the_pipeline_makes_what_it_makes_with_the_stock_class(from_image):
    model = make_flux2()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels) if from_image else None
    ours, theirs = run(pipeline_with(model), image), run(pipeline_with(model.to_diffusers()), image)
    assert ours.shape == (1, 3, 64, 64)
    assert torch.equal(ours, theirs)


def test_a_saved_pipeline_opens_again(tmp_path):
    model = make_flux2()
    pipeline_with(model).save_pretrained(tmp_path)
    opened = DiffusionPipeline.from_pretrained(tmp_path).vae
    assert type(opened) is Flux2VAE
    assert torch.equal(opened.bn.running_var, model.bn.running_var)
    stock = AutoencoderKLFlux2.from_pretrained(tmp_path / "vae")
    assert torch.equal(stock.bn.running_mean, model.bn.running_mean)
