import math
import re
import xml.etree.ElementTree as ElementTree

from latentae.evaluation.report.charts import bar_charts, rate_distortion_charts
from latentae.evaluation.report.results import Results, Value


def widths(chart):
    return [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]


def test_bars_begin_at_zero_and_are_as_long_as_their_values():
    results = Results({}, {"a": {"rfid": Value(3.0)}, "b": {"rfid": Value(1.5)}, "c": {}})
    (chart,) = bar_charts(results)
    longest, half = widths(chart)
    assert longest == 2 * half
    assert "lower is better" in chart
    assert '<text x="0" y="40" font-weight="700">b</text>' in chart
    ElementTree.fromstring(chart)


def test_intervals_and_odd_numbers():
    models = {
        "a": {"psnr": Value(20.0, 19.0, 25.0), "kid": Value(-0.1, -0.2, 0.0)},
        "b": {"psnr": Value(math.inf)},
    }
    psnr, kid = sorted(bar_charts(Results({}, models)), key=lambda chart: "KID" in chart)
    assert psnr.count("whisker") == 1
    assert widths(psnr) == [164 * 20 / 25]
    assert widths(kid) == [0.0]


def test_rate_against_distortion():
    models = {
        "kl": {"psnr": Value(20.0), "kl_bits_per_pixel": Value(2.0)},
        "vq": {"psnr": Value(30.0), "bits_per_pixel": Value(1.0), "entropy_bits_per_pixel": Value(0.9)},
        "tiny": {"psnr": Value(25.0)},
    }
    (chart,) = rate_distortion_charts(Results({}, models))
    points = [tuple(map(float, point)) for point in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (vq_x, vq_y), (kl_x, kl_y) = points  # the better first
    assert vq_x < kl_x
    assert vq_y < kl_y  # upwards
    ElementTree.fromstring(chart)
    del models["kl"]
    assert rate_distortion_charts(Results({}, models)) == []


def test_equal_points_have_labels_of_their_own():
    value = {"psnr": Value(20.0), "bits_per_pixel": Value(2.0)}
    (chart,) = rate_distortion_charts(Results({}, {"a": value, "b": value}))
    first, second = (
        float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="\w+">[ab]<', chart.replace("\n", ""))
    )
    assert second - first >= 12


def test_names_are_escaped_and_cut():
    (chart,) = bar_charts(Results({}, {"<script>": {"rfid": Value(1.0)}, "a" * 30: {"rfid": Value(1.0)}}))
    assert "&lt;script&gt;" in chart
    assert f"{'a' * 13}…" in chart
