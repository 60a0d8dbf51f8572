import base64
import io

import jinja2
import numpy as np
import pytest
from PIL import Image

from latentae.report import page
from latentae.report.page import data_uri, png_uri, render


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("has_webp", [True, False])
def test_pictures_lose_nothing(has_webp, tmp_path, monkeypatch):
    monkeypatch.setattr(page.features, "check", lambda name: has_webp)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    uri = data_uri(tmp_path / "a.png")
    assert uri.startswith(f"data:image/{'webp' if has_webp else 'png'};base64,")
    assert np.array_equal(decoded(uri), pixels)
    assert np.array_equal(decoded(png_uri((tmp_path / "a.png").read_bytes())), pixels)


def test_of_a_large_picture_the_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decoded(data_uri(tmp_path / "a.png")), pixels[:, 116:884])


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="sections"):
        render("inspection.html", pictures={}, facts={"model": "m", "images": "i", "data": "d"})
