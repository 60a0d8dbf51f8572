import math

import pytest

from latentae.report.metrics import METRICS, info, number


def test_every_metric_is_explained():
    for name, metric in METRICS.items():
        assert name == name.lower()
        assert metric.label
        assert metric.meaning
        assert metric.digits >= 1
    assert METRICS["psnr"].better == "higher"
    assert METRICS["rfid"].better == "lower"
    assert info("mine").label == "mine"


@pytest.mark.parametrize(
    ("value", "text"), [(21.504, "21.50"), (math.nan, "-"), (math.inf, "∞"), (-math.inf, "-∞")]
)
def test_numbers(value, text):
    assert number(value, "psnr") == text
