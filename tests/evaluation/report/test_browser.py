import base64
import io

import numpy as np
import pytest
from PIL import Image

from latentae.evaluation.report import browser as module
from latentae.evaluation.report.browser import browser, data_uri, picture_data


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("has_webp", [True, False])
def test_pictures_lose_nothing(has_webp, tmp_path, monkeypatch):
    monkeypatch.setattr(module.features, "check", lambda name: has_webp)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    uri = data_uri(tmp_path / "a.png")
    assert uri.startswith(f"data:image/{'webp' if has_webp else 'png'};base64,")
    assert np.array_equal(decoded(uri), pixels)


def test_of_a_large_picture_the_middle(tmp_path, report):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1000, 3), dtype=np.uint8)
    results, folder = report
    Image.fromarray(pixels).save(folder / results.pictures[0].original)
    data = picture_data(results, folder)
    assert np.array_equal(decoded(data["files"][results.pictures[0].original]), pixels[:, 116:884])
    assert data["pictures"][0]["part"] == "the middle of 1000 x 10 pixels"
    assert data["pictures"][1]["part"] == ""


def test_what_the_script_is_given(report):
    results, folder = report
    data = picture_data(results, folder)
    assert data["models"] == ["kl", "a <b> & c"]
    assert len(data["files"]) == 12
    entry = data["pictures"][1]
    assert entry["values"]["kl"] == {"PSNR": "21.00", "SSIM": "0.5000"}
    assert entry["why"] == ["worst of kl", "median"]
    assert {entry["original"], *entry["reconstructions"].values()} <= data["files"].keys()


def test_only_the_kinds_that_there_are(report):
    results, _ = report
    assert all(f'data-filter="{kind}"' in browser(results) for kind in ("", "worst", "median", "random"))
    results.pictures = results.pictures[:1]
    assert 'data-filter="random"' not in browser(results)
    assert "a &lt;b&gt; &amp; c</button>" in browser(results)
    results.pictures = []
    assert browser(results) == ""
