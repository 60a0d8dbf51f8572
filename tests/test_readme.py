"""README's code runs as written, on a model where README says it is."""

import re
from pathlib import Path

import torch

from latentae import VQGAN
from latentae.config.describe import known_keys
from latentae.export import export_diffusers

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = VQGAN(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=1024,
    )
    export_diffusers(model, tmp_path / "run/model")
    monkeypatch.chdir(tmp_path)
    names = {}
    code = blocks("python")
    assert len(code) >= 2
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert names["image"].size == (64, 64)
    assert names["output"].indices.shape == (2, 25, 19)


def test_files_and_keys_that_readme_names_exist():
    for path in re.findall(r"(?:scripts|benchmarks|configs)/[\w./]+\.(?:py|yaml)", README):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\(([\w.]+)\)", README):
        assert (ROOT / link).is_file(), link
    for key in re.findall(r"`((?:data|model|loss)\.[\w.]+)`", README):
        if key != "data.image_szie":
            assert key in known_keys(), key


def test_no_placeholder_is_left():
    assert re.findall(r"\{\w+\}", README) == []
