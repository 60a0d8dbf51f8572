import numpy as np
import pytest
import torch
from torch import nn

from latentae.models import KLVAE, AutoencoderOutput
from latentae.report.grids import picture_grid
from latentae.training.pictures import preview, whole_preview


class Negative(nn.Module):
    def forward(self, images):
        return AutoencoderOutput(sample=-images)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_above_reconstructions(channels):
    pixels = preview(Negative(), torch.ones(4, channels, 8, 10))
    assert pixels.shape == (2 * (8 + 4), 4 * (10 + 4), 3)
    assert (pixels[2:10, 2:12] == 255).all()
    assert (pixels[14:22, 2:12] == 0).all()


@pytest.fixture
def kl():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return KLVAE(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4).eval()


def test_four_rows_of_a_posterior(kl):
    images = torch.rand(2, 3, 32, 36) * 2 - 1
    pixels = preview(kl, images, posterior=True)
    state = torch.get_rng_state()
    assert np.array_equal(pixels, preview(kl, images, posterior=True))  # the same noise every time
    assert torch.equal(state, torch.get_rng_state())

    height, width = 32 + 4, 2 * (36 + 4)
    assert pixels.shape[0] == 4 * height
    column, grid = pixels[:, :-width], pixels[:, -width:]
    rows = [grid[row * height : (row + 1) * height] for row in range(4)]
    with torch.no_grad():
        posterior = kl.encode(images).latent_dist
        mode = kl.decode(posterior.mode()).sample
    assert np.array_equal(np.concatenate(rows[:2]), picture_grid(torch.stack([images, mode])))
    # the first draw is the sample's noise, the second the prior's
    noise, prior = torch.randn(2, 2, 4, 16, 18, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = torch.stack(
            [kl.decode(posterior.mean + posterior.std * noise).sample, kl.decode(prior).sample]
        )
    assert np.array_equal(np.concatenate(rows[2:]), picture_grid(drawn))

    assert 20 < column.shape[1] < 60
    assert (column == 255).mean() > 0.8
    for row in range(4):  # a name beside each row
        assert (column[row * height : (row + 1) * height] < 100).any()


def test_names_do_not_crowd_small_pictures(kl):
    pixels = preview(kl, torch.zeros(1, 3, 8, 8), posterior=True)
    assert pixels.shape[0] == 4 * (8 + 4)


def test_whole_images_stand_left_of_their_reconstructions():
    large, small = torch.ones(3, 9, 20), torch.full((3, 6, 4), -1.0)
    pixels = whole_preview(Negative(), [large, small])
    assert pixels.shape == ((9 + 4) + (6 + 4), 2 * (20 + 4), 3)
    assert (pixels[2:11, 2:22] == 255).all()
    assert (pixels[2:11, 26:46] == 0).all()
    assert (pixels[15:21, 2:6] == 0).all()
    assert (pixels[15:21, 10:14] == 255).all()
    assert (pixels[13:, 16:] == 255).all()  # the narrower row ends in white


def test_whole_images_may_have_any_size(kl):
    image = torch.rand(3, 33, 21) * 2 - 1
    pixels = whole_preview(kl, [image])
    assert pixels.shape == (33 + 4, 2 * (21 + 4), 3)
    with torch.no_grad():
        expected = kl(image[None]).sample[0]
    assert np.array_equal(pixels, picture_grid(torch.stack([image, expected])[None]))
