"""A model that takes images of one size alone refuses others before the work, with the option to change."""

from types import SimpleNamespace

import pytest

from benchmarks.stand_ins import make_stock
from latentae import cli
from latentae.evaluation.blocks import protocol_called
from latentae.evaluation.evaluate import check_fixed_sizes
from latentae.latents.cache import encode_dataset
from tests.training.conftest import draw_images


@pytest.fixture
def places(tmp_path):
    make_stock("AutoencoderRAE").save_pretrained(tmp_path / "rae")  # of 32 pixels
    draw_images(tmp_path / "images/train", size=48)
    return {"rae": tmp_path / "rae", "images": tmp_path / "images", "out": tmp_path / "out"}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate {rae} --data {images} --out {out}", "use --protocol resize-32 or crop-32"),
        (
            "evaluate {rae} --data {images} --out {out} --protocol native",
            ": a picture of 48 x 48, and a model takes images of 32 x 32 pixels alone: crop it first",
        ),
        ("encode {rae} --data {images} --out {out} --image-size 64", "give an image_size of 32"),
        ("encode {rae} --data {images} --out {out} --sizes bucket", "use sizes='crop'"),
        ("inspect {rae} --data {images} --out {out} --image-size 64", "give an image_size of 32"),
        ("probe {rae} --data {images} --out {out} --split train --image-size 64", "use --image-size 32"),
        ("reconstruct {images} {out} --model {rae}", "none of 10 image(s) has this size: resize or crop"),
    ],
)
def test_another_size_is_refused_with_the_remedy(command, says, places, capsys):
    assert cli.main(command.format(**places).split()) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert says in sentence
    assert not places["out"].exists()


def test_sizes_that_are_not_changed_must_be_the_models(places):
    with pytest.raises(ValueError, match="48x48 pixels and image_size is 32x32"):
        encode_dataset(str(places["rae"]), str(places["images"]), places["out"], sizes="refuse")


def test_models_of_two_sizes_are_evaluated_apart():
    models = [SimpleNamespace(name=f"rae{side}", fixed_size=side) for side in (32, 64)]
    check_fixed_sizes(models[:1], protocol_called("native"))
    with pytest.raises(ValueError, match=r"rae32 32x32, rae64 64x64\): evaluate them apart"):
        check_fixed_sizes(models, protocol_called("native"))
