import json

import pytest
import torch
from safetensors.torch import save_file

from latentae import cli
from tests.latents.conftest import make_kl, make_vq
from tests.latents.inspection.conftest import save_pictures


@pytest.fixture
def places(tmp_path):
    make_kl().save_pretrained(tmp_path / "kl")
    save_pictures(tmp_path / "images", 4)
    return {"kl": tmp_path / "kl", "images": tmp_path / "images", "out": tmp_path / "out"}


def test_figures_are_made(places, capsys):
    arguments = [str(places["kl"]), "--data", str(places["images"]), "--out", str(places["out"])]
    assert cli.main(["inspect", *arguments, "--image-size", "20", "--max-images", "3"]) == 0
    shown = capsys.readouterr().out
    assert f"figures: {places['out'] / 'inspect.html'}" in shown
    assert "samples: KL(fitted Gaussian || N(0, I))" in shown
    assert (places["out"] / "histograms.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{kl}"], "the following arguments are required: --data, --out"),
        (["{kl}", "--data", "{images}", "--out", "{out}", "--max-images", "1"], "error: max_images is 1"),
        (["{kl}", "--data", "{images}", "--out", "{images}"], "error: "),
        (["{images}", "--data", "{images}", "--out", "{out}"], "error: "),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, places, capsys):
    assert cli.main(["inspect", *(word.format(**places) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert says in error
    if error.startswith("error: "):
        assert len(error.splitlines()) == 1
    assert not places["out"].exists()


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_a_decoder_that_makes_nan_is_one_error(places, capsys, make):
    model = make()
    with torch.no_grad():
        model.decoder.conv_out.bias[0] = float("nan")
    model.save_pretrained(places["out"].parent / "broken")
    arguments = [str(places["out"].parent / "broken"), "--data", str(places["images"])]
    assert cli.main(["inspect", *arguments, "--out", str(places["out"])]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "values that the decoder gives are not finite" in error
    assert "weights are damaged" in error
    assert not places["out"].exists()


def test_the_family_gives_the_scale(places, tmp_path):
    model = make_kl(scaling_factor=None, block_out_channels=(32, 64), norm_num_groups=32)
    save_file(model.state_dict(), tmp_path / "published.safetensors")
    arguments = [str(tmp_path / "published.safetensors"), "--data", str(places["images"])]
    arguments += ["--out", str(places["out"]), "--image-size", "16", "--family", "sd1"]
    assert cli.main(["inspect", *arguments]) == 0
    numbers = json.loads((places["out"] / "inspect.json").read_text())
    assert numbers["inspected"]["scaling_factor"] == 0.18215
    assert "N(0, I), scaled" in numbers["samples"]["share_outside_of_range"]
