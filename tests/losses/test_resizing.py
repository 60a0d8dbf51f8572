import pytest
import torch
import torch.nn.functional as F

from latentae.losses.feature_maps import resize

RANDOM = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (16, 24), (1, 1), (3, 40)])
def test_it_is_torchs_antialiased_resizing(size):
    images = torch.randn(2, 3, 16, 24, generator=RANDOM, dtype=torch.float64)
    expected = F.interpolate(images, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(images, size), expected, rtol=1e-10, atol=1e-12)


def test_a_ramp_by_hand():
    """Half as many positions: each takes four old ones with weights 1, 3, 3, 1; at the ends three."""
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0])[None, None, None]
    halved = resize(ramp, (1, 2)).flatten()
    torch.testing.assert_close(halved, torch.tensor([(0 * 3 + 1 * 3 + 2) / 7, (1 + 2 * 3 + 3 * 3) / 7]))


def test_gradient():
    images = torch.randn(1, 2, 6, 5, generator=RANDOM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize(x, (3, 7)), images)


def test_types_are_kept():
    images = torch.rand(1, 1, 8, 8)
    assert resize(images, (8, 8)) is images
    half = resize(images.bfloat16(), (4, 4))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, resize(images.bfloat16().float(), (4, 4)).bfloat16())
