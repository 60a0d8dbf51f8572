import io

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.report.grids import Figure, image_grid, label_rows, picture_grid, save_png, tile_grids


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


def test_a_figure_is_written_as_it_is(tmp_path):
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    figure = Figure("t", picture)
    figure.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(figure.png()))), picture)


def count(figure, colour):
    return int((abs(figure.picture.astype(int) - colour) <= 1).all(axis=-1).sum())


def test_small_images_grow_by_whole_numbers():
    images = torch.full((2, 3, 3, 16, 16), -0.5)
    figure = image_grid("t", images, rows=["a", "b"], columns=["x", "y", "z"], column_title="of these")
    assert count(figure, 64) == 6 * 112 * 112


def test_large_images_shrink_and_keep_their_aspect():
    assert count(image_grid("t", torch.full((1, 1, 3, 400, 200), -0.5), rows=["a"]), 64) == 192 * 96


def test_titles_and_row_names_have_room():
    narrow, wide = (image_grid("t", torch.zeros(1, 1, 3, 8, 8), rows=[name]) for name in ("a", "a" * 60))
    assert wide.picture.shape[1] > narrow.picture.shape[1] + 300
    titled = image_grid("a title that is long for so little paper", torch.zeros(1, 1, 3, 8, 8), rows=["a"])
    assert (titled.picture[:, -19:] == 255).all()  # nothing of the title touches the margin


def test_every_tile_is_drawn_once():
    # Of 4 pixels, shown 6 times as large, in rows of 32; mid-grey.
    assert count(tile_grids("t", [("used", torch.zeros(70, 3, 4, 4))]), 128) == 70 * 24 * 24
    blocks = [("a", torch.zeros(5, 1, 30, 30)), ("b", torch.zeros(3, 1, 30, 30))]
    assert count(tile_grids("t", blocks), 128) == 8 * 30 * 30


def test_rows_are_labelled_at_their_left():
    grid = np.full((40, 30, 3), 128, np.uint8)
    labelled = label_rows(grid, ["input", "mode"])
    assert np.array_equal(labelled[:, -30:], grid)
    for row in (labelled[:20, :-30], labelled[20:, :-30]):
        assert (row < 100).any()


def test_large_rgba_images_lose_their_hidden_colours_before_they_shrink():
    images = torch.zeros(1, 1, 4, 400, 400)
    images[:, :, 0], images[:, :, 1:3] = 1.0, -1.0  # red, hidden in the right half
    images[:, :, 3] = 1.0
    images[..., 3, :, 200:] = -1.0
    picture = image_grid("title", images, rows=["row"], alpha=True).picture.astype(int)
    columns = picture[picture.shape[0] // 2]
    reddish = columns[(columns[:, 0] > columns[:, 1] + 8)]
    assert len(reddish) in range(94, 100)  # half of 192, and the blend at the border
    assert (reddish[:-3] == [255, 0, 0]).all()


def test_rgba_images_are_shown_on_a_checkerboard():
    images = torch.zeros(1, 1, 4, 16, 16)
    images[:, :, 0], images[:, :, 1:3] = 1.0, -1.0  # red
    images[..., 3, :, :] = -1.0
    images[..., 3, 0, :] = 1.0  # the first row is opaque
    images[..., 3, 1, 0] = 51 / 127.5 - 1  # alpha 1/5
    picture = picture_grid(images, border=0, alpha=True)
    assert picture.shape == (16, 16, 3)
    assert picture[0].tolist() == [[255, 0, 0]] * 16
    assert picture[1, 0].tolist() == [255, 204, 204]  # 255 · 4/5
    assert picture[2, [0, 7, 8, 15]].tolist() == [[255] * 3, [255] * 3, [204] * 3, [204] * 3]
    assert picture[8, [0, 8]].tolist() == [[204] * 3, [255] * 3]
    assert picture_grid(images, border=0)[2, 0].tolist() == [255, 0, 0]
