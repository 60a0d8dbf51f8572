import numpy as np
import pytest
from PIL import Image

from latentae.latents.inspection.axes import Axis, Chart


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 10, ""), [0, 2, 4, 6, 8, 10]),
        (Axis(-4.4, 4.6, ""), [-4, -2, 0, 2, 4]),
        (Axis(0, 0.48, ""), [0, 0.1, 0.2, 0.3, 0.4]),
        (Axis(0.03, 1, "", logarithmic=True), [0.05, 0.1, 0.2, 0.5, 1]),
        (Axis(1e-4, 1e2, "", logarithmic=True), [1e-4, 1e-2, 1, 1e2]),
    ],
)
def test_ticks_are_round(axis, ticks):
    assert axis.ticks(5) == pytest.approx(ticks, abs=1e-12)


def test_shares_of_an_axis():
    assert Axis(2, 6, "").share(3) == 0.25
    assert Axis(0.01, 100, "", logarithmic=True).share(1) == pytest.approx(0.5)


def make_chart(logarithmic=False):
    paper = Image.new("RGB", (400, 300), "white")
    y = Axis(1e-6, 1e3, "power", logarithmic=True) if logarithmic else Axis(0, 10, "height")
    return paper, Chart(paper, (100, 20, 380, 220), Axis(0, 10, "place"), y)


def test_values_become_pixels():
    _, chart = make_chart()
    assert chart.point(0, 0) == (100, 220)
    assert chart.point(5, 10) == (240, 20)


def test_lines_and_bars_end_at_the_frame():
    paper, chart = make_chart()
    chart.line([-5, 15], [5, 5], (255, 0, 0), 3)
    chart.bars([-2, 2, 4], [20, 4], (0, 0, 255))
    picture = np.asarray(paper).astype(int)
    red = (picture == (255, 0, 0)).all(axis=-1)
    assert red[120, 101:380].sum() > 200
    assert not red[:, :100].any()
    assert not red[:, 381:].any()
    blue = (picture == (0, 0, 255)).all(axis=-1)
    assert blue[20:221, 110].sum() > 180  # cut off at the top
    assert not blue[:20].any()
    assert not blue[:, :100].any()
    assert blue[200, 160]
    assert not blue[115, 200]  # half as high


@pytest.mark.parametrize("logarithmic", [False, True])
def test_names_and_numbers_are_written_outside_of_the_frame(logarithmic):
    paper, _ = make_chart(logarithmic)
    dark = (np.asarray(paper) < 120).any(axis=-1)
    assert dark[60:180, :40].any()  # the name of the y axis
    assert dark[20:220, 60:97].any()  # its numbers
    assert dark[225:245, 100:380].any()
    assert dark[250:290, 200:280].any()
