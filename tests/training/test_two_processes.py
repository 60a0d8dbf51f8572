"""Two ranks against one with a batch twice as large, in real processes over gloo."""

import json

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from latentae.config import load_config
from latentae.latents import calibration
from latentae.training.trainer import Trainer
from tests.processes import launch
from tests.training.conftest import TINY, draw_images
from tests.training.launch import flatten, log_lines, states_of

PLAIN = ["loss.adversarial=null", "discriminator=null"]
# A scale that is learned with the weights, and channels of which some are below the free bits.
LIKELIHOOD = [
    "loss.reconstruction={type: laplace, scale_perceptual: true}",
    "loss.kl={weight: 0.3, free_bits: {nats: 15.0}, schedule: {type: cyclical, cycle_steps: 4, cycles: 1}}",
]
# Small images are too small for LPIPS.
LATENT_LOSSES = [
    "loss.perceptual=null",
    "loss.equivariance={probability: 0.6, min_scale: 0.5, low_resolution_probability: 0.5}",
    "loss.latent_noise={scale: 0.3}",
    "loss.spectral={factors: [2, 4]}",
    "loss.alignment={network: {folder}/transformer, cosine_margin: 0.1, similarity_margin: 0.1}",
]
HELPERS = ["loss.adversarial.lecam={weight: 0.1, decay: 0.5}", "discriminator.r1={weight: 1.0, every: 2}"]
MODELS = {
    "KL": ("kl_vae", ["model.class=KLVAE", "loss.kl.weight=0.01", *PLAIN]),
    "KL with a likelihood": ("kl_vae", ["model.class=KLVAE", *LIKELIHOOD, *PLAIN]),
    "KL with losses of latents": (
        "kl_vae",
        ["model.class=KLVAE", "loss.kl.weight=0.01", *PLAIN, *LATENT_LOSSES],
    ),
    "VQGAN with losses of latents": ("vqgan", LATENT_LOSSES),
    "VQ by gradient": ("vq_vae", ["model.class=VQVAE", *PLAIN]),
    "VQ by moving averages": ("vq_vae", ["model.class=VQVAE", "model.quantizer.type=ema", *PLAIN]),
    "VQGAN": ("vqgan", []),
    "VQGAN under Muon": ("vqgan", ["optimizer.type=muon", "discriminator.optimizer.type=muon"]),
    "VQGAN by moving averages": ("vqgan", ["model.quantizer.type=ema"]),
    "VQGAN with all its helpers": ("vqgan", [*HELPERS, "discriminator.augment=[color, translation]"]),
    # With as many codes as that, some stay without a latent and restart after step 4.
    "codes that restart": (
        "vq_vae",
        ["model.class=VQVAE", "model.quantizer.type=ema", "model.quantizer.num_codes=256", *PLAIN],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, alexnet_trunk):
    folder = tmp_path_factory.mktemp("ranks")
    draw_images(folder / "images")
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=8, patch_size=2)).save_pretrained(folder / "transformer")
    return folder


def arguments(folder, model, output_dir, batch_size):
    family, changes = MODELS[model]
    shared = ["max_steps=5", "gradient_accumulation_steps=2", "checkpoint_every=5", "validate_every=5"]
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step. The lean
    # blocks' rounding puts a value in the discriminator of "VQGAN by moving averages" on the other side of a
    # LeakyReLU's kink: the generator's gradient of one image of the third step is another one, those of the
    # others agree to 1e-8, and two steps later codes differ, too. They have tests of their own.
    shared += ["optimizer.epsilon=1.0e-3", "performance=off"]
    shared += ["discriminator.optimizer.epsilon=1.0e-3"] if "GAN" in model else []
    given = [f"batch_size={batch_size}", f"output_dir={output_dir}"]
    changes = [change.replace("{folder}", str(folder)) for change in changes]
    return family, ["--config", str(folder / "tiny.yaml"), *changes, *shared, *given]


@pytest.fixture(scope="module")
def two(folder):
    """The folders of the runs of two ranks, by model, all from one launch."""
    folders = {model: folder / f"two_{number}" for number, model in enumerate(MODELS)}
    runs = [arguments(folder, model, path, batch_size=2) for model, path in folders.items()]
    launch("tests/training/train_in_ranks.py", 2, json.dumps(runs))
    return folders


@pytest.mark.parametrize("model", MODELS)
def test_ranks_are_bit_equal(two, model):
    first, second = (flatten(torch.load(two[model] / f"rank_{rank}.pt")) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert len(first) > 100
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name], name


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_equal_one(folder, two, model, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    alone = folder / two[model].name.replace("two", "one")
    family, words = arguments(folder, model, alone, batch_size=4)
    trainer = Trainer(load_config(family, words))
    trainer.fit()
    one, both = flatten(states_of(trainer)), flatten(torch.load(two[model] / "rank_0.pt"))
    assert one.keys() == both.keys()
    for name, value in one.items():
        # Five steps move a weight by up to 5e-3. Adam's moments would show it if one of thousands of latents
        # that lies between two codes fell to the other side.
        if isinstance(value, Tensor) and not name.startswith("optimizers"):
            torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert log_lines(alone)[0].keys() == log_lines(two[model])[0].keys()
    for line, other in zip(log_lines(alone), log_lines(two[model]), strict=True):
        assert other == pytest.approx(line, rel=1e-3, abs=1e-5)
    if model == "codes that restart":
        assert log_lines(alone)[1]["codebook_usage"] < 1
    first, second = (json.loads((run / "summary.json").read_text()) for run in (alone, two[model]))
    assert first["images"] == second["images"]
    assert second["psnr"] == pytest.approx(first["psnr"], abs=1e-3)
