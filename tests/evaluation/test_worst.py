import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation.assembly import Assembled
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.models import NamedModel
from latentae.evaluation.worst import choose_pictures, save_pictures


def assembled(**values):
    rows = {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}
    count = len(next(iter(rows.values())))
    return Assembled({}, rows, torch.arange(count), {}, [], "", [])


def test_worst_median_and_random():
    results = {
        "a": assembled(psnr=np.arange(100.0), lpips_alex=np.arange(100.0)),
        "b": assembled(psnr=np.arange(100.0)),
    }
    reasons = choose_pictures(results)
    worst = {name: {i for i, why in reasons.items() if f"worst of {name}" in why} for name in results}
    assert worst["a"] == set(range(84, 100))
    assert worst["b"] == set(range(16))
    assert {i for i, why in reasons.items() if "median" in why} == set(range(46, 54))
    assert sum("random" in why for why in reasons.values()) == 8
    assert reasons == choose_pictures(results)


def test_worst_by_a_distance_that_all_images_have():
    lpips = [float("nan"), *np.arange(99.0)]
    reasons = choose_pictures({"a": assembled(psnr=np.arange(100.0), lpips_alex=lpips)})
    assert {i for i, why in reasons.items() if "worst of a" in why} == set(range(16))


def test_few_images():
    assert set(choose_pictures({"a": assembled(psnr=[1.0, 2.0])})) == {0, 1}


def test_pictures_are_those_of_the_protocol(source, image_folder, models, tmp_path):
    subjects = [NamedModel(name, name, model) for name, model in models.items()]
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    results = {name: assembled(psnr=np.arange(70.0)) for name in models}
    (picture,) = save_pictures({3: ["random"]}, blocks, subjects, results, tmp_path, torch.device("cpu"))
    assert picture.name == "003.png"
    assert picture.values == {"kl": {"psnr": 3.0}, "vq": {"psnr": 3.0}}
    original = np.asarray(Image.open(tmp_path / picture.original))
    assert np.array_equal(original, np.asarray(Image.open(image_folder / "003.png")))
    images = blocks.prepare(3)[None]
    with torch.no_grad():
        expected = models["kl"](images).sample[0].clamp(-1, 1)
    shown = torch.from_numpy(np.array(Image.open(tmp_path / picture.reconstructions["kl"]))).permute(2, 0, 1)
    assert (shown / 127.5 - 1 - expected).abs().max().item() == pytest.approx(0, abs=0.5 / 127)
