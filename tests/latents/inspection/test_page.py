import numpy as np

from latentae.latents.inspection.figure import Figure
from latentae.latents.inspection.page import render
from latentae.latents.inspection.sections import Section


def test_the_page_holds_figures_remarks_and_facts():
    figure = Figure("a <title>", np.zeros((2, 2, 3), np.uint8))
    sections = [
        Section("one", "One & only", figure, {}, "What it shows.", ("careful <b>",)),
        Section("two", "Without", None, {}, "About.", ()),
    ]
    page = render("The model", "256 images", sections, {"seed": 3})
    assert page.count("data:image/png;base64,") == 1
    assert "<h2>One &amp; only</h2>" in page
    assert 'alt="a &lt;title&gt;"' in page
    assert "<li>careful &lt;b&gt;</li>" in page
    assert "<dt>seed</dt><dd>3</dd>" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
