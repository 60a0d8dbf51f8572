import pytest
import torch

from latentae.latents.inspection.figure import COLOURS
from latentae.latents.inspection.histogram_figure import Panel, histogram_figure


def panel(std=1.0):
    edges = torch.linspace(-4, 4, 33, dtype=torch.float64)
    counts = (1e4 * (-edges[:-1].square() / 2).exp()).long()
    return Panel("channel", "facts", edges, counts, 0.0, std)


@pytest.mark.parametrize(("count", "width", "height"), [(1, 1, 1), (4, 4, 1), (5, 4, 2)])
def test_panels_stand_in_rows_of_four(count, width, height):
    one = histogram_figure("t", [panel()]).picture.shape
    picture = histogram_figure("t", [panel()] * count).picture
    assert picture.shape[1] - 40 == width * (one[1] - 40)
    assert picture.shape[0] - one[0] == (height - 1) * 320


def test_the_gaussian_is_drawn_where_the_channel_varies():
    def lines(std):
        return int((histogram_figure("t", [panel(std)]).picture == COLOURS[1]).all(axis=-1).sum())

    assert lines(1.0) > 100
    assert lines(0.0) == 0
