import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from latentae.models import AutoencoderOutput
from latentae.training.previews import save_preview


class Negative(nn.Module):
    def forward(self, images):
        return AutoencoderOutput(sample=-images)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_above_reconstructions(tmp_path, channels):
    images = torch.ones(4, channels, 8, 10)
    save_preview(Negative(), images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * (8 + 4), 4 * (10 + 4), 3)
    assert (pixels[2:10, 2:12] == 255).all()
    assert (pixels[14:22, 2:12] == 0).all()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
