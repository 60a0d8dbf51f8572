import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation.pictures import picture_grid, save_png


def test_rows_and_columns():
    values = torch.tensor([[-1.0, 0.0, 1.0], [0.5, -0.5, 9.0]])  # clamped
    grid = picture_grid(values[:, :, None, None, None].expand(2, 3, 3, 4, 5))
    assert grid.shape == (2 * (4 + 4), 3 * (5 + 4), 3)
    for row, levels in enumerate([(0, 128, 255), (191, 64, 255)]):
        for column, level in enumerate(levels):
            framed = grid[row * 8 : row * 8 + 8, column * 9 : column * 9 + 9]
            assert (framed[2:6, 2:7] == level).all()
            assert framed.sum() == level * 60 + 255 * (3 * 8 * 9 - 60)  # the rest is white


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (13, [0, 1, 2])]
)
def test_channels(channels, shown):
    levels = torch.arange(channels) * 10.0
    images = (levels / 127.5 - 1)[:, None, None].expand(1, 1, channels, 2, 2)
    assert picture_grid(images)[3, 3].tolist() == [10 * channel for channel in shown]


def test_half_precision_and_gradients_do_not_matter():
    images = torch.full((1, 1, 3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert picture_grid(images)[3, 3].tolist() == [191, 191, 191]


def test_a_png_appears_whole_or_not_at_all(tmp_path):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    save_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert np.array_equal(np.asarray(saved), picture)
    with pytest.raises(TypeError):
        save_png(picture.astype(np.float64), tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(OSError, match=r"c\.png"):
        save_png(picture, tmp_path / "c.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "c.png"]
