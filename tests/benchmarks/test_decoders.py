import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from latentae import KLVAE
from latentae.data import validation_photos
from latentae.evaluation.features import Measures
from latentae.evaluation.metrics import psnr, to_images, to_uint8
from latentae.models.decoders import downscale
from tests.evaluation.conftest import MeanDistance, MeanFeatures
from tests.models.conftest import make


@pytest.fixture
def module(script, monkeypatch):
    """The script, with cheap networks."""
    module = script("bench_decoders")
    measures = Measures({"lpips_alex": MeanDistance()}, {"vgg16": MeanFeatures()})
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def run(module, monkeypatch, *words):
    options = ["--limit", "2", "--protocol", "crop-32", "--sizes", "64", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_decoders.py", *map(str, words), *options])
    return module.main()


def tables(text):
    """Returns model -> its cells, of all tables."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows if not set(name) <= set("- :")}


def photographs():
    source = validation_photos()
    pictures = [torch.tensor(source.load(i, 3))[48:80, 48:80].permute(2, 0, 1)[None] for i in (0, 18)]
    return [to_images(picture) for picture in pictures]


@pytest.fixture
def models(tmp_path):
    """A teacher, a narrower decoder of its latents, and one that upscales."""
    made = {}
    for name, shape in {
        "teacher": {},
        "narrow": {"decoder_block_out_channels": (4, 8)},
        "x2": {"upscale": 2},
    }.items():
        torch.manual_seed(0)
        made[name] = make(KLVAE, scaling_factor=0.5, **shape).eval()
        made[name].save_pretrained(tmp_path / name)
    return made


@torch.no_grad()
def test_decoders_beside_their_teacher(module, models, tmp_path, monkeypatch, capsys):
    places = [f"{name}={tmp_path / name}" for name in ("narrow", "x2")]
    assert run(module, monkeypatch, *places, "--teacher", f"teacher={tmp_path / 'teacher'}") == 0
    found = tables(capsys.readouterr().out)
    assert list(found) == [
        *("decoder", "teacher", "narrow"),
        *("decoder of images 2 times as large", "teacher-bicubic-x2", "x2"),
    ]
    teacher, narrow, x2 = models.values()
    images = photographs()

    # Parameters and operations.
    for name, model in models.items():
        parts = (model.decoder, model.post_quant_conv)
        assert found[name][0] == f"{sum(p.numel() for part in parts for p in part.parameters()):,}"
        with FlopCounterMode(display=False) as counter:
            model.decode(torch.zeros(1, 4, 32 // model.upscale, 32 // model.upscale))
        assert found[name][1] == f"{counter.get_total_flops() / 1e9:.2f}"

    # Reconstructions.
    for model, cells in ((teacher, found["teacher"]), (narrow, found["narrow"])):
        ratios = [psnr(model(image).sample, image) for image in images]
        assert float(cells[4]) == pytest.approx(torch.cat(ratios).mean().item(), abs=0.006)
    small = [downscale(image, 2) for image in images]
    enlarged = [F.interpolate(teacher(image).sample, scale_factor=2, mode="bicubic") for image in small]
    ratios = [psnr(to_images(to_uint8(x)), image) for x, image in zip(enlarged, images, strict=True)]
    assert float(found["teacher-bicubic-x2"][4]) == pytest.approx(torch.cat(ratios).mean().item(), abs=0.006)

    # Agreement: all decode the teacher's latents.
    assert found["teacher"][7] == "-"
    pairs = [
        (model.decode(teacher.encode(image).latents).sample, teacher(image).sample)
        for model, image in ((narrow, images[0]), (narrow, images[1]))
    ]
    ratios = [psnr(*pair) for pair in pairs]
    assert float(found["narrow"][7]) == pytest.approx(torch.cat(ratios).mean().item(), abs=0.006)
    ratios = [
        psnr(downscale(x2.decode(teacher.encode(image).latents).sample, 2), teacher(image).sample)
        for image in small
    ]
    assert float(found["x2"][7]) == pytest.approx(torch.cat(ratios).mean().item(), abs=0.006)


def test_without_models_it_measures_random_ones(module, monkeypatch, capsys):
    assert run(module, monkeypatch) == 0
    found = tables(capsys.readouterr().out)
    assert {"teacher", "narrow", "teacher-bicubic-x2", "x2"} < set(found)
    assert all("-" not in cells[:-1] for cells in found.values())


def test_mistakes(module, models, tmp_path, monkeypatch, capsys):
    assert run(module, monkeypatch, tmp_path / "narrow") == 2
    assert "--teacher" in capsys.readouterr().err
    assert run(module, monkeypatch, tmp_path / "narrow", "--teacher", tmp_path / "x2") == 2
    assert "upscales" in capsys.readouterr().err
    make(KLVAE, latent_channels=5).save_pretrained(tmp_path / "other")
    assert run(module, monkeypatch, tmp_path / "other", "--teacher", tmp_path / "teacher") == 2
    assert "5 channels at 1/2" in capsys.readouterr().err
