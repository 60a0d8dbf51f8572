import math

import pytest

from latentae.evaluation.report.results import Results, Value
from latentae.evaluation.report.table import (
    best_models,
    cell,
    present_metrics,
    render_markdown,
    render_terminal,
)


@pytest.fixture
def results():
    return Results(
        {},
        {
            "kl": {"psnr": Value(21.5, 21.0, 22.0), "rfid": Value(3.25), "kl_bits_per_pixel": Value(5.0)},
            "vq": {"psnr": Value(23.0, 22.5, 23.4), "rfid": Value(4.0), "mine": Value(1.0)},
        },
    )


def test_cells():
    assert cell(Value(21.5, 21.0, 22.04), "psnr") == "21.50 [21.00, 22.04]"
    assert cell(Value(3.25), "rfid") == "3.250"
    assert cell(None, "rfid") == "-"
    assert cell(Value(math.inf), "psnr") == "∞"
    assert cell(Value(math.nan), "psnr") == "-"


def test_which_is_better_depends_on_the_metric(results):
    assert best_models(results, "psnr") == {"vq"}
    assert best_models(results, "rfid") == {"kl"}
    assert best_models(results, "kl_bits_per_pixel") == set()
    results.models["vq"]["rfid"] = Value(3.2501)
    assert best_models(results, "rfid") == {"kl", "vq"}


def test_terminal(results):
    assert present_metrics(results) == ["rfid", "psnr", "kl_bits_per_pixel", "mine"]
    assert render_terminal(results).splitlines() == [
        "                                kl                      vq",
        "rFID                       3.250 *                 4.000",
        "PSNR (dB)   21.50 [21.00, 22.00]    23.00 [22.50, 23.40] *",
        "KL bits/px                 5.000                       -",
        "mine                           -                  1.0000",
    ]


def test_markdown(results):
    lines = render_markdown(results).splitlines()
    assert lines[0] == "| metric | kl | vq |"
    assert "| rFID | **3.250** | 4.000 |" in lines
    assert "| PSNR, dB | 21.50 [21.00, 22.00] | **23.00 [22.50, 23.40]** |" in lines
