import pytest
import torch

from latentae.discriminators import DiffAugment
from latentae.discriminators.augmentation import color, cutout, translation

SIZES = [(3, 8, 8), (1, 9, 5), (5, 32, 24), (3, 1, 1), (2, 3, 17)]


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_color_by_hand():
    pixel = torch.tensor([[[[0.2]], [[0.6]]]], dtype=torch.float64)  # one image, two channels, one pixel
    draws = torch.tensor([[0.75, 0.25, 0.5]], dtype=torch.float64)
    # Brightness adds ¼: 0.45, 0.85. Half the distance from their mean 0.65: 0.55, 0.75. Contrast stays.
    assert color(pixel, draws).flatten().tolist() == pytest.approx([0.55, 0.75])
    # Half again the distance from the image's mean 0.4, and nothing else.
    draws = torch.tensor([[0.5, 0.5, 1.0]], dtype=torch.float64)
    assert color(pixel, draws).flatten().tolist() == pytest.approx([0.4 - 0.3, 0.4 + 0.3])


def test_one_channel_has_no_saturation():
    images = uniform(2, 1, 4, 4)
    draws = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.9, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(color(images, draws), images)


def test_translation_by_hand():
    images = torch.arange(1.0, 65.0).view(1, 1, 8, 8)  # moved by −1, 0 or 1 each way
    still = torch.tensor([[0.5, 0.5]])
    assert torch.equal(translation(images, still), images)
    up_and_left = translation(images, torch.tensor([[0.99, 0.99]]))
    assert torch.equal(up_and_left[..., :7, :7], images[..., 1:, 1:])
    assert up_and_left[..., 7, :].count_nonzero() == up_and_left[..., :, 7].count_nonzero() == 0
    down = translation(images, torch.tensor([[0.0, 0.5]]))
    assert torch.equal(down[..., 1:, :], images[..., :7, :])
    assert down[..., 0, :].count_nonzero() == 0


def test_cutout_by_hand():
    images = torch.ones(3, 2, 8, 4)  # a hole of 4×2
    # Centres: a corner, where a quarter of the hole is left; the middle; beyond the opposite corner.
    holes = cutout(images, torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999, 0.999]])) == 0
    assert holes[0, 0].nonzero().tolist() == [[0, 0], [1, 0]]
    assert holes[1, 1].nonzero().tolist() == [[row, column] for row in (2, 3, 4, 5) for column in (1, 2)]
    assert holes[2, 0].nonzero().tolist() == [[6, 3], [7, 3]]


@pytest.mark.parametrize("size", [4, 5, 7, 16])
def test_every_shift_and_every_hole_occurs(size):
    count = 400
    draws = torch.stack([torch.linspace(0, 1 - 1e-7, count), torch.full((count,), 0.5)], dim=1)
    images = torch.ones(count, 1, size, size)
    limit = int(size / 8 + 0.5)
    rows = translation(images, draws).any(dim=3).sum(dim=2).flatten()
    assert set(rows.tolist()) == {size - shift for shift in range(limit + 1)}
    hole = int(size / 2 + 0.5)
    covered = size - cutout(images, draws).all(dim=3).sum(dim=2).flatten()
    assert set(covered.tolist()) == set(range(hole // 2 + (hole % 2), hole + 1))


@pytest.mark.parametrize("shape", SIZES)
def test_any_size_and_number_of_channels(shape):
    augment = DiffAugment(["color", "translation", "cutout"])
    images = uniform(4, *shape) * 2 - 1
    result = augment(images, uniform(4, augment.num_draws).float())
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert result.isfinite().all()


@pytest.mark.parametrize(
    "policy", [["color"], ["translation"], ["cutout"], ["cutout", "color", "translation"]]
)
def test_gradients(policy):
    augment = DiffAugment(policy)
    images = (uniform(3, 2, 6, 5) * 2 - 1).requires_grad_()
    draws = uniform(3, augment.num_draws, seed=1)
    assert torch.autograd.gradcheck(lambda values: augment(values, draws), (images,))
    assert augment(images, draws).sum().grad_fn is not None


def test_an_image_s_changes_depend_on_its_draws_alone():
    augment = DiffAugment(["color", "translation", "cutout"])
    images, draws = uniform(4, 3, 16, 16), uniform(4, augment.num_draws, seed=1)
    whole = augment(images, draws)
    parts = torch.cat([augment(images[:1], draws[:1]), augment(images[1:], draws[1:])])
    assert torch.equal(whole, parts)
    assert not torch.equal(augment(images, draws.flip(0)), whole)


def test_the_order_is_the_policy_s():
    images, draws = uniform(1, 3, 8, 8), uniform(1, 5)
    first = DiffAugment(["color", "cutout"])(images, draws)
    torch.testing.assert_close(first, cutout(color(images, draws[:, :3]), draws[:, 3:]))
    second = DiffAugment(["cutout", "color"])(images, draws)
    torch.testing.assert_close(second, color(cutout(images, draws[:, :2]), draws[:, 2:]))
    assert DiffAugment(["cutout", "color"]).num_draws == 5


def test_impossible_policies():
    with pytest.raises(ValueError, match="policy holds 'flip', but may hold color, translation, cutout"):
        DiffAugment(["color", "flip"])
    with pytest.raises(ValueError, match="only once"):
        DiffAugment(["color", "color"])
