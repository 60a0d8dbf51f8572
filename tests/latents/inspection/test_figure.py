import io

import numpy as np
import pytest
from PIL import Image

from latentae.latents.inspection.figure import Figure, blank, finished, short_number, text_size


def test_a_figure_is_written_as_it_is(tmp_path):
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    figure = Figure("t", picture)
    figure.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(figure.png()))), picture)


def test_paper_is_as_wide_as_its_title():
    title = "A title that is rather long for so little paper"
    paper, _ = blank(30, 80, title)
    assert paper.width > text_size(title, 26)[0] + 30
    picture = finished(title, paper).picture
    assert (picture[:, -19:] == 255).all()  # nothing of it touches the margin
    assert (picture < 100).any()


def test_lines_are_measured_together():
    one, two = text_size("abc"), text_size("abc\nabcdef")
    assert two[0] > one[0]
    assert two[1] > 1.8 * one[1]


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.25, "0.25"), (1234.5, "1.23e+03"), (-2, "-2")])
def test_numbers_are_short(value, text):
    assert short_number(value) == text
