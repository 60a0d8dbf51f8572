import json

import numpy as np
import pytest
from PIL import Image

from latentae.probe.report import loss_charts, render_page, render_report_markdown, write_report
from tests.probe.test_results import example
from tests.report.test_evaluation import Tags


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / name / "samples.png")
    return tmp_path


def test_the_page_stands_alone(folder):
    text = render_page(example(), folder)
    page = Tags(text)
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:,").startswith(("data:", "#")), (tag, attributes)
    assert "<b>" not in text.replace("<body", "")
    for heading in ("Generation", "Samples", "Loss", "Reconstruction of held-out images", "Settings"):
        assert f"<h2>{heading}</h2>" in text
    assert "<h2>Nearest training images</h2>" not in text  # of which there are none


def test_the_best_is_marked(folder):
    text = render_page(example(), folder)
    assert '<td class="best">3.500</td><td>4.500</td>' in text
    assert "**3.500** | 4.500" in render_report_markdown(example())


def test_markdown_says_what_the_page_does():
    text = render_report_markdown(example())
    assert "# What can be generated after 10 steps at 32 pixels" in text
    assert "![a](a/samples.png)" in text
    assert "| b | 10 | 1.2000 | 1.0000 | 0.7000 |" in text
    assert "- few images" in text
    assert "cannot be compared" in text


def test_names_are_text(folder):
    results = example(("a<script>", "b"))
    for name in results.models:
        results.models[name].pictures = {}
    assert "a<script>" not in render_page(results, folder)


def test_written(folder):
    write_report(example(), folder)
    assert json.loads((folder / "results.json").read_text())["remarks"] == ["few images"]
    assert not list(folder.glob(".*"))


def test_one_curve_per_model():
    relative, plain = loss_charts(example())
    assert (relative.note, plain.note) == ("1: nothing learned", "each in its own latent space")
    assert all(f"> {name}<" in chart.svg for name in "ab" for chart in (relative, plain))
    empty = example()
    for model in empty.models.values():
        model.curve = []
    assert loss_charts(empty) == []
