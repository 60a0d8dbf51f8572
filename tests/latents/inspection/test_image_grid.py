import torch

from latentae.latents.inspection.image_grid import image_grid


def coloured(figure, colour):
    return int((abs(figure.picture.astype(int) - colour) <= 1).all(axis=-1).sum())


def test_small_images_grow_by_whole_numbers():
    images = torch.full((2, 3, 3, 16, 16), -0.5)
    figure = image_grid("t", images, rows=["a", "b"], columns=["x", "y", "z"], column_title="of these")
    assert coloured(figure, 64) == 6 * 112 * 112


def test_large_images_shrink_and_keep_their_aspect():
    figure = image_grid("t", torch.full((1, 1, 3, 400, 200), -0.5), rows=["a"])
    assert coloured(figure, 64) == 192 * 96


def test_grey_and_many_bands_are_shown():
    assert coloured(image_grid("t", [torch.full((1, 1, 112, 112), 0.5)], rows=["a"]), 191) == 112 * 112
    bands = torch.full((1, 5, 112, 112), 1.0)
    bands[:, :3] = torch.tensor([-1.0, 0.5, -0.5])[:, None, None]
    assert coloured(image_grid("t", [bands], rows=["a"]), (0, 191, 64)) == 112 * 112


def test_a_long_row_name_has_room():
    narrow, wide = (image_grid("t", torch.zeros(1, 1, 3, 8, 8), rows=[name]) for name in ("a", "a" * 60))
    assert wide.picture.shape[1] > narrow.picture.shape[1] + 300
    assert (wide.picture[:, :20] == 255).all()
