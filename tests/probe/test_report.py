import json
import math

import numpy as np
import pytest
from PIL import Image

from latentae.probe.report import (
    ModelResult,
    ProbeResults,
    loss_charts,
    render_page,
    render_report_markdown,
    write_report,
)
from latentae.probe.training import CurvePoint
from latentae.report.results import Value
from tests.report.test_evaluation import Tags


def example(names=("a", "b")):
    models = {
        name: ModelResult(
            path=f"runs/{name}",
            class_name="KLVAE",
            sha256="0" * 64,
            latent_shape=[4, 8, 8],
            patch_size=1,
            parameters=1000,
            metrics={"fd_vgg16_generated": 3.5 + number, "flow_loss": 0.7},
            curve=[CurvePoint(5, 1.0, 1.5, 1.4, 0.9), CurvePoint(10, 2.0, 1.2, 1.1 - number / 10, 0.7)],
            sample_seconds=0.1,
            pictures={"samples": f"{name}/samples.png"},
        )
        for number, name in enumerate(names)
    }
    reconstruction = {name: {"psnr": Value(25.0, 24.0, 26.0)} for name in names}
    return ProbeResults({"steps": 10, "image_size": 32}, models, reconstruction, ["few images"])


def test_written_and_read():
    results = example()
    again = ProbeResults.from_dict(json.loads(json.dumps(results.to_dict())))
    assert again == results


def test_numbers_that_json_cannot_hold():
    results = example()
    results.reconstruction["a"]["psnr"] = Value(math.inf)
    text = json.dumps(results.to_dict(), allow_nan=False)
    assert math.isnan(ProbeResults.from_dict(json.loads(text)).reconstruction["a"]["psnr"].value)


def test_tables():
    table = example().generation_table()
    assert table.models["b"]["fd_vgg16_generated"] == Value(4.5)
    assert example().reconstruction_table().models["a"]["psnr"].low == 24.0


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
