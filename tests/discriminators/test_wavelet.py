import pytest
import torch

from latentae.discriminators import WaveletDiscriminator
from latentae.discriminators.wavelet import haar


def test_haar_bands_worked_out_by_hand():
    images = torch.tensor([[[[1.0, 2.0, 9.0], [4.0, 8.0, 9.0]]]])
    assert haar(images).flatten().tolist() == [7.5, -2.5, -4.5, 1.5]


def test_haar_is_orthonormal_and_separate_for_each_channel():
    images = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    bands = haar(images)
    assert bands.shape == (2, 12, 4, 3)
    torch.testing.assert_close(bands.square().sum(), images.square().sum())
    torch.testing.assert_close(haar(images[:, 1:2]), bands[:, 1::3])
    torch.testing.assert_close(bands[:, :3] / 2, torch.nn.functional.avg_pool2d(images, 2))


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
@pytest.mark.parametrize(("size", "grid"), [((64, 48), (8, 6)), ((45, 70), (5, 8)), ((8, 8), (1, 1))])
def test_logits_per_patch_of_any_size(norm, size, grid):
    logits = WaveletDiscriminator(3, base_channels=16, norm=norm)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *grid)


def test_each_scale_comes_in():
    """Without the finer scales' convolutions, a logit depends on the coarsest bands alone."""
    discriminator = WaveletDiscriminator(1, base_channels=8, num_layers=2, norm="none")
    for parameter in discriminator.halvings.parameters():
        parameter.data.zero_()
    images = torch.randn(1, 1, 16, 16)
    means = torch.nn.functional.avg_pool2d(images, 2)
    enlarged = means.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(discriminator(images), discriminator(enlarged))
    for parameter in discriminator.halvings.parameters():
        parameter.data.fill_(0.1)
    assert not torch.allclose(discriminator(images), discriminator(enlarged), rtol=1e-3)


def test_gradients_of_first_and_second_order():
    torch.manual_seed(0)
    discriminator = WaveletDiscriminator(1, base_channels=8, num_layers=2).double()
    images = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(discriminator, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(discriminator, images, fast_mode=True)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="norm is 'batch'"):
        WaveletDiscriminator(norm="batch")
    with pytest.raises(ValueError, match="base_channels is 12"):
        WaveletDiscriminator(base_channels=12)
