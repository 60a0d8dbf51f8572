import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentae.latents.inspection.inspect import inspect, render_page
from latentae.latents.inspection.sections import Section
from latentae.report.grids import Figure
from tests.latents.conftest import make_kl, make_vq
from tests.latents.inspection.conftest import save_pictures


@pytest.fixture
def places(tmp_path):
    make_kl().save_pretrained(tmp_path / "kl")
    make_vq().save_pretrained(tmp_path / "vq")
    save_pictures(tmp_path / "images", 6)
    save_pictures(tmp_path / "one", 1)
    return tmp_path


def run(places, model="kl", data="images", out="out", **options):
    said = []
    sections = inspect(
        str(places / model), data=str(places / data), out=places / out, say=said.append, **options
    )
    return sections, said


def numbers(folder):
    return json.loads((folder / "inspect.json").read_text())


def test_the_folder_holds_everything(places):
    sections, said = run(places, model="vq")
    files = {file.name for file in (places / "out").iterdir()}
    assert files == {"inspect.html", "inspect.json", *(f"{part.name}.png" for part in sections)}
    assert len(sections) == 7
    assert [line.partition(":")[0] for line in said] == ["the images"]
    found = numbers(places / "out")
    assert found["inspected"]["images"] == "6 central crops of 16 pixels"
    assert sum(found["codebook"]["tables"][0]["counts"]) == 6 * 64
    assert np.asarray(Image.open(places / "out/traversal.png")).shape[2] == 3


def test_transparent_images_are_shown_on_a_checkerboard(places):
    make_kl(in_channels=4, out_channels=4).save_pretrained(places / "rgba")
    run(places, model="rgba", data="images", out="opaque")
    run(places, model="rgba", data="images", out="board", alpha=True)
    for name in ("interpolation", "samples", "traversal"):
        opaque, board = (np.asarray(Image.open(places / out / f"{name}.png")) for out in ("opaque", "board"))
        assert opaque.shape == board.shape
        assert (opaque != board).any()


def test_the_same_numbers_for_any_batch_size(places):
    run(places, out="a", batch_size=1, seed=4)
    run(places, out="b", batch_size=5, seed=4)
    one, other = numbers(places / "a"), numbers(places / "b")
    np.testing.assert_allclose(one["correlations"]["matrix"], other["correlations"]["matrix"], atol=1e-5)
    assert one["spectrum"]["latents"]["slope"] == pytest.approx(
        other["spectrum"]["latents"]["slope"], abs=1e-5
    )
    assert one["traversal"]["pixel_change_per_std"] == pytest.approx(
        other["traversal"]["pixel_change_per_std"], abs=1e-5
    )


def test_an_image_that_cannot_be_decoded_is_left_out_and_named(places):
    (places / "images/3.png").write_bytes(b"no picture")
    _, said = run(places)
    assert len(said) == 2  # the first says what is read
    assert "3.png" in said[1]
    assert numbers(places / "out")["inspected"]["images"].startswith("5 central crops")


def test_nothing_is_overwritten_unasked(places):
    run(places)
    with pytest.raises(ValueError, match="holds an inspection already"):
        run(places)
    run(places, overwrite=True, max_images=3)
    assert numbers(places / "out")["inspected"]["images"].startswith("3 central")
    with pytest.raises(ValueError, match="holds other files than an inspection"):
        run(places, out="images", overwrite=True)
    assert (places / "images/0.png").exists()


def test_what_replaces_another_model_leaves_none_of_its_figures(places):
    run(places, model="vq")
    (places / "out/notes.png").write_bytes(b"mine")
    sections, _ = run(places, model="kl", overwrite=True)
    figures = {file.name for file in (places / "out").glob("*.png")}
    assert figures == {"notes.png", *(f"{part.name}.png" for part in sections)}
    assert "codebook.png" not in figures


def test_a_full_disk_changes_nothing_and_is_tried_again(places, monkeypatch):
    write, before = Path.write_bytes, {}

    def fail(path, content):
        if "spectrum" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    for overwrite in (False, True):
        with monkeypatch.context() as full:
            full.setattr(Path, "write_bytes", fail)
            with pytest.raises(OSError, match=r"no space left to write 8 files into .*out .*: nothing there"):
                run(places, seed=1, overwrite=overwrite)
        assert (places / "out").exists() == overwrite
        if not overwrite:
            run(places)
            before = {file.name: file.read_bytes() for file in (places / "out").iterdir()}
    assert {file.name: file.read_bytes() for file in (places / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "one"}, r"has 1 image\(s\) that can be used, but an inspection compares 2 or more"),
        ({"max_images": 1}, "max_images is 1"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"image_size": 1}, "image_size is 1, but a latent of this model stands for 2x2 pixels"),
        ({"out": "images/0.png"}, "0.png is a file"),
        ({"data": "nowhere"}, "does not exist"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"alpha": True}, "alpha is set, but the model takes images of 3 channels"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(places, options, says):
    with pytest.raises(ValueError, match=says):
        run(places, **options)
    assert not (places / "out").exists()


def test_several_processes_are_refused(places, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        run(places)


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


def test_latents_that_need_too_much_memory_are_refused_before_they_are_encoded(places, monkeypatch):
    monkeypatch.setattr("latentae.latents.inspection.channels.MOST_BYTES", 6 * 4 * 8 * 8 * 8 - 1)
    with pytest.raises(ValueError, match="--max-images"):
        run(places)
    assert not (places / "out").exists()
    run(places, max_images=5)
