import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from latentae.report import figures
from latentae.report.evaluation import bar_charts, rate_distortion_charts
from latentae.report.results import Results, Value


def draw_bars(values, best=frozenset()):
    colours = dict.fromkeys(values, "#0072b2")
    return figures.bars(values, text=lambda value: f"{value:.1f}", colours=colours, best=set(best))


def widths(chart):
    return [bar.get_width() for bar in chart.axes[0].patches]


def test_bars_begin_at_zero_and_are_as_long_as_their_values():
    chart = draw_bars({"a": Value(3.0), "b": Value(-1.5, -2.0, 0.5)}, best=["b"])
    assert widths(chart) == [3.0, -1.5]
    assert chart.axes[0].get_xlim()[0] == -2.0
    weights = {text.get_text(): text.get_weight() for text in chart.axes[0].texts}
    assert weights == {"3.0": "normal", "a": "normal", "-1.5": "bold", "b": "bold"}


def test_charts_of_an_evaluation():
    models = {
        "a": {"psnr": Value(20.0, 19.0, 25.0), "rfid": Value(3.0)},
        "<script>": {"psnr": Value(math.inf), "rfid": Value(1.5)},
        "$a$ _b": {"rfid": Value(math.nan)},
    }
    rfid, psnr = bar_charts(Results({}, models))
    assert (rfid.title, rfid.note) == ("rFID", "lower is better")
    assert (psnr.title, psnr.note) == ("PSNR in dB", "higher is better")
    assert "<script>" not in rfid.svg
    assert ">20.00<" in psnr.svg  # and no bar for an infinite number
    assert "∞" not in psnr.svg


def test_rate_against_distortion():
    models = {
        "kl": {"psnr": Value(20.0), "kl_bits_per_pixel": Value(2.0)},
        "vq": {"psnr": Value(30.0), "bits_per_pixel": Value(1.0), "entropy_bits_per_pixel": Value(0.9)},
        "tiny": {"psnr": Value(25.0)},
    }
    (chart,) = rate_distortion_charts(Results({}, models))
    assert chart.note == "against the rate, higher is better"
    assert ">kl<" in chart.svg
    assert ">tiny<" not in chart.svg
    del models["kl"]
    assert rate_distortion_charts(Results({}, models)) == []


def test_names_of_equal_points_stand_below_each_other():
    points = {"a": (2.0, 20.0), "b": (2.0, 20.0)}
    chart = figures.scatter(points, x_name="x", text=str, colours={"a": "red", "b": "blue"})
    (first, second) = (text.xyann[1] for text in chart.axes[0].texts)
    assert first - second >= 12
    assert [line.get_xydata().tolist() for line in chart.axes[0].lines] == [[[2.0, 20.0]]] * 2


def test_curves_go_through_their_points_and_every_name_is_in_the_legend():
    chart = figures.curves({"_a": [(0, 1.0), (10, 0.5)], "b": [(5, 2.0)]}, x_name="steps")
    assert [line.get_xydata().tolist() for line in chart.axes[0].lines] == [[[0, 1], [10, 0.5]], [[5, 2]]]
    assert [text.get_text().strip() for text in chart.legends[0].get_texts()] == ["_a", "b"]


def test_svg_stands_in_a_page_and_takes_its_colours():
    drawn = figures.svg(draw_bars({'a <b> & "c" $x$ 画': Value(1.0)}), 'one "chart"')
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == 'one "chart"'
    assert root.attrib.keys() >= {"viewBox", "role"}
    assert "http" not in drawn
    assert "currentColor" in drawn
    assert figures.INK not in drawn
    assert 'a &lt;b&gt; &amp; "c"' in drawn.replace("&quot;", '"')
    ids = re.findall(r' id="([^"]*)"', drawn)
    assert len(ids) == len(set(ids))
    assert drawn == figures.svg(draw_bars({'a <b> & "c" $x$ 画': Value(1.0)}), 'one "chart"')


def test_two_charts_share_no_names():
    charts = [figures.svg(draw_bars({"a": Value(1.0, 0.5, 1.5)}), label) for label in ("one", "two")]
    first, second = (set(re.findall(r' id="([^"]*)"', chart)) for chart in charts)
    assert not first & second


def panel(std=1.0):
    edges = np.linspace(-4, 4, 33)
    counts = (1e4 * np.exp(-np.square(edges[:-1]) / 2)).astype(np.int64)
    return figures.Histogram("channel", "facts", edges, counts, 0.0, std)


def pixels(figure, colour):
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return int((abs(figure.picture.astype(int) - (red, green, blue)) <= 2).all(axis=-1).sum())


@pytest.mark.parametrize(("count", "width", "height"), [(1, 370, 380), (4, 1360, 380), (5, 1360, 700)])
def test_histograms_stand_in_rows_of_four(count, width, height):
    figure = figures.histograms("t", [panel()] * count)
    assert figure.picture.shape == (height, width, 3)
    assert figure.picture.dtype == np.uint8


def test_the_gaussian_is_drawn_where_the_channel_varies():
    assert pixels(figures.histograms("t", [panel(1.0)]), figures.COLOURS[1]) > 100
    assert pixels(figures.histograms("t", [panel(0.0)]), figures.COLOURS[1]) == 0


def test_spectra_without_power_are_named_and_not_drawn():
    frequency = np.arange(1, 17) / 16
    noise = figures.Spectrum("noise", frequency, np.ones((1, 16)) * [[*range(1, 17)]])
    flat = figures.Spectrum("flat", frequency, np.zeros((0, 16)))
    both = figures.spectra("t", [noise, flat])
    legend_alone = pixels(figures.spectra("t", [flat]), figures.COLOURS[0])
    assert pixels(both, figures.COLOURS[0]) > 300
    assert legend_alone < 150
    assert pixels(both, figures.COLOURS[1]) < 150


def test_signs_have_their_colours_and_constant_channels_are_grey():
    figure = figures.matrix("t", np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert pixels(figure, "#67001f") > 5000
    assert pixels(figure, "#053061") > 5000
    assert pixels(figure, "#c8c8c8") < 50
    assert pixels(figures.matrix("t", np.eye(3), constant=[1]), "#c8c8c8") > 5000


@pytest.mark.parametrize("channels", [1, 16, 256])
def test_any_number_of_channels_fits(channels):
    height, width, _ = figures.matrix("t", np.eye(channels)).picture.shape
    assert height <= 840
    assert width <= 900


def test_codes_from_the_most_used_to_the_least():
    even, one = np.ones((1, 16)), np.zeros((1, 16))
    one[0, 3] = 16
    assert pixels(figures.code_usage(even), figures.COLOURS[0]) > 10 * pixels(
        figures.code_usage(one), figures.COLOURS[0]
    )
    assert figures.code_usage(np.ones((3, 8))).picture.shape == (510, 500, 3)


def test_two_runs_in_two_colours():
    figure = figures.paired_curves({"loss": ({1: 1.0, 2: 0.5}, {1: 0.2, 2: 0.9})})
    assert pixels(figure, figures.COLOURS[0]) > 20
    assert pixels(figure, figures.COLOURS[1]) > 100
