"""The script that draws README's picture."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from latentae import KLVAE, VQVAE

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs/tools/readme_picture.py"))
SIZES = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "latent_channels": 4,
}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    KLVAE(**SIZES).save_pretrained(tmp_path / "kl")
    VQVAE(**SIZES, num_vq_embeddings=16).save_pretrained(tmp_path / "vq")
    return [f"KL-VAE={tmp_path / 'kl'}", f"VQ-VAE={tmp_path / 'vq'}"]


def test_picture_has_a_column_for_each_model(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.jpg"
    SCRIPT["main"]([str(out), *models])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["KL-VAE", "VQ-VAE"]
    picture = Image.open(out)
    assert 3 * 192 < picture.width < 3 * 192 + 200
    assert 2 * 192 < picture.height < 2 * 192 + 150


def test_square_outside_of_the_photograph_is_refused(tmp_path: Path, models: list[str]) -> None:
    with pytest.raises(ValueError, match="192 pixels at"):
        SCRIPT["main"]([str(tmp_path / "picture.jpg"), *models, "--corner", "200", "0"])
