import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from latentae.data import CenterCrop, ColorJitter, ImageDataset, RandomCrop, training_loader, with_true_colors
from latentae.data.color_jitter import hue_rotation
from tests.data.pictures import ListSource


def image(channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1


def changed(jitter: ColorJitter, pixels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return jitter(pixels, np.random.default_rng(seed))


def draws(jitter: ColorJitter, count: int = 300) -> list[tuple[np.ndarray, float]]:
    """The maps that `changed` applies for these seeds."""
    generators = [np.random.default_rng(seed) for seed in range(count)]
    assert all(generator.random() < jitter.probability for generator in generators)
    return [jitter.draw(generator) for generator in generators]


def test_a_third_of_a_turn_shifts_the_channels_by_one():
    red, green, blue = np.eye(3)
    for turns, shifted in ((0, red), (1 / 3, green), (2 / 3, blue), (1, red)):
        np.testing.assert_allclose(hue_rotation(turns) @ red, shifted, atol=1e-12)
    # Half a turn reflects a colour at its grey: 2 · mean − x.
    np.testing.assert_allclose(hue_rotation(0.5) @ [0.9, 0.3, 0.0], [-0.1, 0.5, 0.8], atol=1e-12)


def test_permutations_reorder_the_channels_exactly_and_equally_often():
    pixels, orders = image(), []
    for seed in range(300):
        permuted = changed(ColorJitter(permute=True), pixels, seed)
        orders.append(tuple(next(k for k in range(3) if torch.equal(plane, pixels[k])) for plane in permuted))
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert len(set(orders)) == 6
    assert all(30 <= orders.count(order) <= 75 for order in set(orders))


def test_hue_keeps_greys_and_the_mean_of_the_channels():
    pixels = image() / 2  # far enough from the ends of the range
    for seed in range(20):
        turned = changed(ColorJitter(hue=0.5, permute=True), pixels, seed)
        torch.testing.assert_close(turned.mean(0), pixels.mean(0), rtol=0, atol=1e-6)
        grey = pixels[:1].expand(3, -1, -1)
        torch.testing.assert_close(
            changed(ColorJitter(hue=0.5, saturation=1.0), grey, seed), grey, rtol=0, atol=1e-6
        )


def test_contrast_and_brightness_are_factor_and_offset():
    jitter = ColorJitter(contrast=0.4, brightness=0.3)
    for seed, (matrix, offset) in enumerate(draws(jitter, 20)):
        factor = matrix[0, 0]
        np.testing.assert_allclose(matrix, factor * np.eye(3), atol=1e-12)
        expected = (image() * factor + offset).clamp(-1, 1)
        torch.testing.assert_close(changed(jitter, image(), seed), expected, rtol=0, atol=1e-6)


def test_saturation_blends_with_the_mean_of_the_channels():
    (matrix, offset), *_ = draws(ColorJitter(saturation=1.0))
    share = 1.5 * matrix[0, 0] - 0.5  # the diagonal is 1/3 + s · 2/3
    expected = share * np.array([0.9, 0.3, 0.0]) + (1 - share) * 0.4
    np.testing.assert_allclose(matrix @ [0.9, 0.3, 0.0], expected, atol=1e-12)
    assert offset == 0


def test_torchvision_shifts_the_hue_of_pure_colours_by_the_same_thirds():
    pixels = (image() + 1) / 2
    turned = (torch.from_numpy(hue_rotation(1 / 3)).float() @ pixels.flatten(1)).view_as(pixels)
    torch.testing.assert_close(turned, reference.adjust_hue(pixels, 1 / 3), rtol=0, atol=1e-5)


def test_ranges_of_what_is_drawn():
    drawn = draws(ColorJitter(hue=0.25, contrast=0.5, brightness=0.1))
    offsets = [offset for _, offset in drawn]
    factors = [matrix.sum() / 3 for matrix, _ in drawn]  # of the greys
    turns = [
        math.atan2((matrix[1, 0] - matrix[2, 0]) * math.sqrt(3) / 2, matrix[0, 0] - matrix.sum() / 9)
        / (2 * math.pi)
        for matrix, _ in drawn
    ]
    for values, low, high in ((offsets, -0.2, 0.2), (factors, 0.5, 1.5), (turns, -0.25, 0.25)):
        width = high - low
        assert low <= min(values) < low + width / 20
        assert high - width / 20 < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=width / 15)


def test_values_stay_in_range():
    jitter = ColorJitter(permute=True, hue=0.5, saturation=1.0, contrast=1.0, brightness=1.0)
    for seed in range(50):
        pixels = changed(jitter, image(), seed)
        assert pixels.shape == (3, 5, 7)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        assert pixels.min() >= -1
        assert pixels.max() <= 1


def test_the_share_of_changed_images():
    jitter, pixels = ColorJitter(probability=0.3, brightness=0.5), image()
    same = sum(changed(jitter, pixels, seed) is pixels for seed in range(500))
    assert same / 500 == pytest.approx(0.7, abs=0.06)
    assert changed(ColorJitter(probability=0.0, hue=0.5), pixels) is pixels


def test_one_setting_does_not_change_what_another_draws():
    for (alone, _), (together, offset) in zip(
        draws(ColorJitter(hue=0.3), 5), draws(ColorJitter(hue=0.3, brightness=0.2), 5), strict=True
    ):
        assert np.array_equal(alone, together)
        assert offset != 0


def test_alpha_stays():
    pixels = image(4)
    turned = changed(ColorJitter(hue=0.5), pixels)
    assert torch.equal(turned[3], pixels[3])
    torch.testing.assert_close(turned[:3], changed(ColorJitter(hue=0.5), pixels[:3]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"hue": 0.6}, "hue=0.6 must be between 0 and 0.5"),
        ({"probability": -0.1}, "probability=-0.1"),
        ({"contrast": float("nan")}, "contrast=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, complaint):
    with pytest.raises(ValueError, match=complaint):
        ColorJitter(**numbers)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="not 13 channels"):
        changed(ColorJitter(hue=0.1), image(13))


# In a dataset


def dataset(jitter: ColorJitter | None, seed: int = 3) -> ImageDataset:
    crop = RandomCrop(16, (1, 1.5), flip=True, color_jitter=jitter)
    return ImageDataset(ListSource(6), crop, channels=3, seed=seed)


def test_crops_and_flips_are_those_without_jitter():
    plain, moved = dataset(None), dataset(ColorJitter(brightness=0.02))
    for epoch in range(3):
        for index in range(6):
            true, shifted = plain[epoch, index]["images"], moved[epoch, index]["images"]
            inside = (shifted > -0.99) & (shifted < 0.99)  # not clipped
            offset = (shifted - true)[inside]
            assert offset.abs().max() <= 0.04 + 1e-6
            torch.testing.assert_close(offset, offset.mean().expand_as(offset), rtol=0, atol=1e-6)


def test_colours_are_a_function_of_seed_epoch_and_index():
    jitter = ColorJitter(permute=True, hue=0.5, saturation=0.5)
    for number in range(6):
        assert torch.equal(dataset(jitter)[2, number]["images"], dataset(jitter)[2, number]["images"])
    loaded = [
        [
            batch["images"]
            for _, batch in zip(
                range(4),
                training_loader(
                    dataset(jitter), batch_size=2, rank=0, world_size=1, seed=3, num_workers=workers
                ),
                strict=False,
            )
        ]
        for workers in (0, 2)
    ]
    for one, other in zip(*loaded, strict=True):
        assert torch.equal(one, other)


def test_true_colours_of_the_same_crops():
    jittered = dataset(ColorJitter(permute=True, hue=0.5))
    plain = with_true_colors(jittered)
    differing = 0
    for index in range(6):
        assert torch.equal(plain[1, index]["images"], dataset(None)[1, index]["images"])
        differing += not torch.equal(plain[1, index]["images"], jittered[1, index]["images"])
    assert differing >= 4
    for other in (dataset(None), ImageDataset(ListSource(2), CenterCrop(8), channels=3)):
        assert with_true_colors(other) is other
