"""How reports show the fit of models to a denoiser of their teacher."""

import json
import math

import pytest

from latentae.report.evaluation import render_page, render_report_markdown
from latentae.report.results import Results, TeacherFit, Value
from latentae.report.tables import channels_table, decoding_table, render_fit_terminal, render_terminal
from tests.report.test_evaluation import Tags, cells

HEADING = "Does a denoiser of kl fit?"


@pytest.fixture
def fit_report(report):
    """The report with the model "kl" as the teacher."""
    results, folder = report
    results.teacher = "kl"
    results.fit["a <b> & c"] = TeacherFit(
        verdict="close",
        advice="a <b> & c: try it.",
        new_decoder_on_old_latents={"psnr": Value(21.25, 20.0, 22.0), "psnr_loss": Value(0.25)},
        old_decoder_on_new_latents={"psnr": Value(21.0), "psnr_loss": Value(0.5), "lpips_alex": Value(0.125)},
        bit_equal=False,
        relative_mse=0.04,
        channels={
            "mean_shift": [0.5, -0.25],
            "std_ratio": [1.125, 0.75],
            "correlation": [0.875, math.nan],
            "relative_mse": [0.0625, math.inf],
        },
    )
    return results, folder


def test_the_page_says_whether_it_fits(fit_report):
    text = render_page(*fit_report)
    assert Tags(text).open == []
    assert "<li>a &lt;b&gt; &amp; c: try it.</li>" in text
    assert cells(text, "Metrics")[0] == ["metric", "kl (teacher)", "a &lt;b&gt; &amp; c"]
    assert cells(text, HEADING) == [
        ["", "PSNR, dB", "PSNR lost, dB", "SSIM", "LPIPS (alex)"],
        ["kl decodes its own latents", "21.50", "-", "-", "-"],
        ["a &lt;b&gt; &amp; c decodes its own latents", "23.00", "-", "-", "-"],
        ["a &lt;b&gt; &amp; c decodes latents of kl", "21.25", "0.25", "-", "-"],
        ["kl decodes latents of a &lt;b&gt; &amp; c", "21.00", "0.50", "-", "0.1250"],
    ]


def test_channels(fit_report):
    table = channels_table(fit_report[0])
    assert table.head == ["0", "1"]
    assert table.rows == [
        ["a <b> & c, mean shift", "0.500", "-0.250"],
        ["a <b> & c, ratio of deviations", "1.125", "0.750"],
        ["a <b> & c, correlation", "0.875", "-"],
        ["a <b> & c, relative MSE", "0.062", "inf"],
    ]


def test_markdown_and_terminal(fit_report):
    results = fit_report[0]
    lines = render_report_markdown(results).splitlines()
    assert f"## {HEADING}" in lines
    assert "- a <b> & c: try it." in lines
    assert "| kl decodes latents of a <b> & c | 21.00 | 0.50 | - | 0.1250 |" in lines
    assert render_fit_terminal(results).splitlines()[-1] == "a <b> & c: try it."
    assert render_terminal(results).splitlines()[0].split() == ["kl", "(teacher)", "a", "<b>", "&", "c"]


def test_comes_back_from_json(fit_report):
    results = fit_report[0]
    results.fit["a <b> & c"].channels = {"mean_shift": [0.5, -0.25]}
    assert Results.from_json(results.to_json()) == results
    results.fit["a <b> & c"].channels = {"correlation": [math.nan]}
    assert math.isnan(Results.from_json(results.to_json()).fit["a <b> & c"].channels["correlation"][0])


def test_nothing_changes_without_a_teacher(report):
    results, folder = report
    assert (decoding_table(results), channels_table(results), render_fit_terminal(results)) == (
        None,
        None,
        "",
    )
    assert "denoiser" not in render_page(results, folder)
    assert "denoiser" not in render_report_markdown(results)
    assert json.loads(results.to_json()).keys() == {"protocol", "models", "details", "pictures", "crops"}
