import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from diffusers.models import modeling_utils
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.card import model_card
from tests.models.conftest import make


@pytest.fixture
def run(tmp_path):
    """A run's folder as training leaves it."""
    config = {
        "output_dir": str(tmp_path / "run"),
        "seed": 3,
        "max_steps": 200,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "mixed_precision": "bf16",
        "data": {"name": "user/flowers", "split": "train", "image_size": 64},
    }
    summary = {
        "step": 200,
        "psnr": 24.318,
        "ssim": 0.71239,
        "lpips": 0.2,
        "images": 36,
        "codebook_usage": 0.5,
    }
    make(VQGAN, scaling_factor=0.25).save_pretrained(tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    return tmp_path / "run"


def test_the_card_of_a_run(run):
    card = model_card(load_autoencoder(run / "model"), "someone/flowers-f2")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"library_name": "diffusers", "tags": ["latentae", "autoencoder", "vqgan"]}
    lines = card.splitlines()
    for line in (
        "# flowers-f2",
        "vae = load_autoencoder('someone/flowers-f2')",
        "| images | 3 channels, values in [-1, 1], any size from 2x2 |",
        "| latents | 4 channels, one position per 2x2 pixels |",
        "| codes | 32, each of 4 values |",
        "| scaling | (latents - 0) * 0.25 |",
        "| images | `user/flowers` |",
        "| crop | 64 |",
        "| steps | 200 |",
        "| batch per process | 16 |",
        "On 36 validation images after 200 steps:",
        "| PSNR | 24.32 dB |",
        "| SSIM | 0.7124 |",
        "| codes in use | 50.0% |",
    ):
        assert line in lines
    assert "`VQModel`" in card


def test_codes_of_several_tables():
    quantizer = {"type": "residual", "depth": 3, "member": {"type": "ema"}}
    card = model_card(make(VQGAN, quantizer=quantizer), "a/b")
    assert "| codes | 3 per position, from tables of 32 |" in card.splitlines()
    assert "No diffusers class can hold its weights." in card


def test_where_the_images_lay_is_nobodys_business(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for place in (tmp_path, tmp_path / "gone"):
        config["data"]["name"] = str(place)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        card = model_card(load_autoencoder(run / "model"), "a/b")
        assert str(tmp_path) not in card
        assert f"`{place.name}`, a local file or folder" in card


def test_a_model_of_which_nothing_is_known():
    card = model_card(make(KLVAE, scaling_factor=None), "kl")
    assert card.count("Not recorded beside the model.") == 2
    assert "| scaling | not measured |" in card
    assert "codes" not in card
    assert "`AutoencoderKL`" in card


def test_a_tiny_autoencoder():
    assert "`AutoencoderTiny`" in model_card(TinyAutoencoder(), "tiny")


def test_a_model_for_which_diffusers_has_no_class():
    assert "No diffusers class" in model_card(make(VQVAE, backbone="2017"), "vq")
    assert "No diffusers class" not in model_card(make(VQVAE), "vq")


def test_scaling_by_channel():
    model = make(KLVAE, scaling_factor=0.5, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert "| scaling | (latents - `latents_mean`) * 0.5 / `latents_std` |" in model_card(model, "kl")


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: ``hub["card"]`` is what it has, ``hub["uploaded"]`` what it is sent."""
    state = {"card": None, "uploaded": None}

    def load(repo_id, **_):
        if state["card"] is None:
            raise EntryNotFoundError("no card yet")
        return ModelCard(state["card"])

    def upload(*, repo_id, folder_path, path_in_repo, **_):
        state["uploaded"] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    def create(repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(ModelCard, "load", load)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    monkeypatch.setattr(hub_utils, "create_repo", create)
    monkeypatch.setattr(modeling_utils, "create_repo", create)
    return state


def test_push_to_hub(run, hub):
    model = load_autoencoder(run / "model")
    model.push_to_hub("someone/flowers")
    assert hub["uploaded"].keys() == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert hub["uploaded"]["README.md"].decode() == model_card(model, "someone/flowers")
    assert json.loads(hub["uploaded"]["config.json"])["_class_name"] == "VQGAN"


def test_save_pretrained_with_push_to_hub(run, hub, tmp_path):
    model = load_autoencoder(run / "model")
    model.save_pretrained(str(tmp_path / "again"), push_to_hub=True, repo_id="someone/flowers")
    assert b"latentae.config" in hub["uploaded"]["diffusion_pytorch_model.safetensors"]
    assert hub["uploaded"]["README.md"].decode() == model_card(model, "someone/flowers")


def test_a_card_of_ones_own_is_kept_and_a_generated_one_renewed(hub):
    hub["card"] = "---\ntags: [mine]\n---\n# My words\n"
    make(KLVAE).push_to_hub("someone/kl")
    assert "# My words" in hub["uploaded"]["README.md"].decode()
    hub["card"] = model_card(make(KLVAE, scaling_factor=3.0), "someone/kl")
    make(KLVAE).push_to_hub("someone/kl")
    assert "(latents - 0) * 1 |" in hub["uploaded"]["README.md"].decode()


def test_no_card_in_a_subfolder(hub):
    make(KLVAE).push_to_hub("someone/pipeline", subfolder="vae")
    assert "README.md" not in hub["uploaded"]
