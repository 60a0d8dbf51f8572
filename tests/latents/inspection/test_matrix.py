import torch

from latentae.latents.inspection.matrix import matrix_figure


def has(figure, colour):
    return int((figure.picture == colour).all(axis=-1).sum())


def test_signs_have_their_colours():
    figure = matrix_figure("t", torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert has(figure, (178, 24, 43)) > 88 * 88
    assert has(figure, (33, 102, 172)) > 88 * 88
    assert has(figure, (200, 200, 200)) == 0


def test_constant_channels_are_grey():
    figure = matrix_figure("t", torch.eye(3), constant=[1])
    assert has(figure, (200, 200, 200)) > 4 * 88 * 88


def test_any_number_of_channels_fits():
    sizes = [matrix_figure("t", torch.eye(count)).picture.shape for count in (1, 16, 256)]
    assert all(height < 1000 and width < 1100 for height, width, _ in sizes)
    assert sizes[2][0] > 600
