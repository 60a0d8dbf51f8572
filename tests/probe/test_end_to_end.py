"""The whole chain in one go: a folder of images, a VAE trained on it, latents, a denoiser, pictures."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline
from PIL import Image

from latentae import load_autoencoder
from latentae.config import load_config
from latentae.evaluation.metrics import to_images
from latentae.latents.cache import LatentDataset
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.generation import draw_labels, sample_images
from latentae.probe.probe import probe
from latentae.probe.request import ProbeRequest
from latentae.report.grids import picture_grid
from latentae.training.trainer import Trainer

VAE = """
output_dir: {folder}/run
max_steps: 150
batch_size: 16
log_every: 50
ema_decay: 0.98
cpu_threads: 1
trackers: []
model:
  class: KLVAE
  block_out_channels: [16, 16, 32]
  layers_per_block: 1
  norm_num_groups: 8
  latent_channels: 4
loss: {{reconstruction: {{type: l1}}, perceptual: null, kl: {{weight: 1.0e-6}}, adversarial: null}}
optimizer: {{type: adamw, learning_rate: 3.0e-3, schedule: cosine, warmup_steps: 20}}
data: {{name: {folder}/images, image_size: 32, random_flip: true, num_workers: 0}}
"""


@pytest.fixture
def trained(tmp_path, image_folder):
    """The folder of a run: a KL-VAE that shrinks each side four times."""
    AcceleratorState._reset_state(reset_partial_state=True)
    file = tmp_path / "vae.yaml"
    file.write_text(VAE.format(folder=tmp_path))
    Trainer(load_config("kl_vae", ["--config", str(file)])).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return tmp_path / "run"


@pytest.mark.slow
def test_from_a_folder_of_images_to_new_ones(trained, image_folder, measures, tmp_path):
    request = ProbeRequest(
        models=[f"vae={trained}"],
        data=str(image_folder),
        out=tmp_path / "probe",
        steps=300,
        batch_size=16,
        image_size=32,
        samples=48,
        sampling_steps=10,
        size=DenoiserSize(64, 2),
    )
    results = probe(request, torch.device("cpu"), measures=measures)
    model = results.models["vae"]

    assert results.reconstruction["vae"]["psnr"].value > 22
    # 1 is what is known from the variances of the channels, without any learning.
    assert model.curve[0].relative_loss > 0.9 > 0.65 > model.curve[-1].relative_loss
    # Between what real images have among themselves and what decoded noise has.
    distances = {name: model.metrics[f"fd_vgg16_{name}"] for name in ("generated", "real", "noise")}
    assert distances["generated"] < 0.25 * distances["noise"]
    assert distances["generated"] < 6 * distances["real"]

    folder = request.out / "vae" / "pipeline"
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is DiTPipeline
    assert type(pipeline.vae) is AutoencoderKL
    assert pipeline.get_label_ids(["disc", "stripe"]) == [0, 1]
    # The same pictures as those the report shows.
    pipeline.set_progress_bar_config(disable=True)
    vae = load_autoencoder(folder)
    assert vae.config.scaling_factor == pytest.approx(load_autoencoder(trained).config.scaling_factor)
    index = json.loads((request.out / "results.json").read_text())
    grid = np.array(Image.open(request.out / index["models"]["vae"]["pictures"]["samples"]))
    labels = draw_labels(LatentDataset(request.out / "vae" / "latents" / "training").labels, 48, 0)
    again = torch.cat(list(sample_images(pipeline, labels, seed=0, steps=10, batch_size=32)))
    assert np.array_equal(picture_grid(to_images(again).unflatten(0, (6, 8))), grid)
    # What is asked for comes out: discs are on blue, stripes on grey.
    means = again.float().mean(dim=(2, 3))
    blueness = means[:, 2] - means[:, 1]
    is_disc = torch.tensor(labels) == 0
    assert ((blueness > 40) == is_disc).float().mean() > 0.85
