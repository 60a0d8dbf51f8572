import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from latentae.evaluation.colour import _ciede2000, channel_shifts, colour_difference, worst_crops
from latentae.evaluation.metrics import to_images


def levels(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_differences_are_scikit_images():
    first, second = levels(2, 3, 24, 20), levels(2, 3, 24, 20, seed=1)
    second[0, :, :8] = first[0, :, :8] // 16 * 16  # close to each other
    first[0, :, 8:12], second[0, :, 12:16] = first[0, :1, 8:12], second[0, :1, 12:16]  # grey
    second[0, :, 16:18] = first[0, :, 16:18]
    labs = [[rgb2lab(image.permute(1, 2, 0).numpy()) for image in batch] for batch in (first, second)]
    expected = np.stack([deltaE_ciede2000(x, y) for x, y in zip(*labs, strict=True)])
    found = colour_difference(to_images(first), to_images(second))
    assert found.shape == (2, 24, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert found[0, 16:18].abs().max() == 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # from table 1 of the paper: pairs 1, 7, 9 and 17
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ],
)
def test_pairs_of_the_paper(first, second, expected):
    x, y = (torch.tensor(colour, dtype=torch.float64).view(3, 1, 1) for colour in (first, second))
    assert _ciede2000(x, y).item() == pytest.approx(expected, abs=5e-5)
    assert _ciede2000(y, x).item() == pytest.approx(expected, abs=5e-5)


def test_shifts_by_hand():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0] = 100  # mean 50, deviation 50
    other = image.clone()
    other[0, 0] += 3
    other[0, 2] //= 2  # mean 25, deviation 25
    shifts = {
        name: value.item() for name, value in channel_shifts(to_images(other), to_images(image)).items()
    }
    expected = {
        "mean_shift_red": 3.0,
        "mean_shift_green": 0.0,
        "mean_shift_blue": -25.0,
        "std_shift_red": 0.0,
        "std_shift_green": 0.0,
        "std_shift_blue": -25.0,
    }
    assert shifts == pytest.approx(expected, abs=1e-12)


def test_the_worst_square():
    difference = torch.zeros(2, 100, 130, dtype=torch.float64)
    difference[0, 36:100, 66:130] = 2.0  # the lower right corner, which no multiple of 16 reaches
    difference[1, 20:40, 40:60] = 6.4
    found = worst_crops(difference)
    assert found.corner[0].tolist() == [36, 66]
    top, left = found.corner[1].tolist()
    assert top <= 20
    assert top + 64 >= 40
    assert left <= 40
    assert left + 64 >= 60
    torch.testing.assert_close(found.delta_e, torch.tensor([2.0, 6.4 * 400 / 4096], dtype=torch.float64))
    small = worst_crops(difference[:1, 30:70, 60:])
    assert small.corner.tolist() == [[0, 6]]
    assert small.delta_e.item() == pytest.approx(2 * 34 / 40)
