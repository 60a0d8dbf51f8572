import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from latentae.config import load_config
from latentae.latents import calibration

# A VQGAN of 30 thousand parameters at 32 pixels, about the least that LPIPS takes: 0.1 s a step.
TINY = """
output_dir: {folder}/run
max_steps: 6
batch_size: 2
checkpoint_every: 3
sample_every: 3
log_every: 2
ema_decay: 0.9
max_grad_norm: 1.0
cpu_threads: 1
trackers: []
model:
  class: VQGAN
  block_out_channels: [8, 16]
  layers_per_block: 1
  norm_num_groups: 4
  latent_channels: 4
  quantizer: {{type: vector, num_codes: 16, init: data, revive_after: 2}}
loss:
  reconstruction: {{type: l1}}
  perceptual: {{type: lpips, trunk: alex, weight: 0.5}}
  adversarial: {{type: hinge, weight: 0.5, start_step: 2, discriminator_warmup_steps: 1}}
discriminator:
  type: patchgan
  base_channels: 8
  num_layers: 2
  optimizer: {{type: adamw, learning_rate: 1.0e-3}}
optimizer: {{type: adamw, learning_rate: 1.0e-3, schedule: cosine, warmup_steps: 2}}
data:
  name: {folder}/images
  image_size: 32
  downscale: [1.0, 1.5]
  random_flip: true
  num_workers: 0
"""


def draw_images(folder, count=10, size=48):
    """Photograph-like pictures: smooth colour gradients with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        waves = np.cos(np.linspace(0, rng.uniform(1, 9), size))[:, None, None] * rng.uniform(
            -1, 1, (1, size, 3)
        )
        pixels = 128 + 80 * waves.cumsum(axis=1) / 8 + rng.normal(0, 8, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")


@pytest.fixture
def tiny(tmp_path, alexnet_trunk, monkeypatch):
    """Makes configs of tiny runs on images in ``tmp_path``; takes overrides as on the command line.

    Their latents' scale is measured on 16 views, which is half of the time of a run on 512.
    """
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    draw_images(tmp_path / "images")
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.format(folder=tmp_path))

    def config(*overrides):
        return load_config("vqgan", ["--config", str(file), *overrides])

    config.file = file
    return config


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state a process: every test starts without."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
