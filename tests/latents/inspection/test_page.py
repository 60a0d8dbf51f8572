import numpy as np

from latentae.latents.inspection.inspect import render_page
from latentae.latents.inspection.sections import Section
from latentae.report.grids import Figure


def test_the_page_holds_figures_remarks_and_facts():
    figure = Figure("a <title>", np.zeros((2, 2, 3), np.uint8))
    sections = [
        Section("one", "One & only", figure, {}, "What it shows.", ("careful <b>",)),
        Section("two", "Without", None, {}, "About.", ()),
    ]
    page = render_page(sections, {"model": "m", "images": "256 images", "data": "photos", "seed": 3})
    assert page.count("data:image/png;base64,") == 1
    assert "<h2>One &amp; only</h2>" in page
    assert 'alt="a &lt;title&gt;"' in page
    assert "<li>careful &lt;b&gt;</li>" in page
    assert "<dt>seed</dt><dd>3</dd>" in page
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
