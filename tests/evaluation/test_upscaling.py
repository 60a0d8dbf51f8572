"""Models whose reconstructions are larger than what their encoder sees."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentae import cli
from latentae.data.transforms import to_tensor
from latentae.demo.compute import Reading, encode, read_image
from latentae.evaluation import evaluate as module
from latentae.evaluation.evaluate import Request, evaluate
from latentae.evaluation.measuring import Settings
from latentae.evaluation.metrics import psnr, to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.evaluation.reconstruct import plan_jobs, run_jobs
from latentae.evaluation.transparency import composite_psnr
from latentae.models.decoders import downscale
from latentae.models.kl import KLVAE
from tests.data.pictures import encoded_images, shows_green, write_cutout
from tests.models.conftest import make

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make(KLVAE, upscale=2)


def read(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]


def test_it_is_measured_against_whole_images(model, measures, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    model.save_pretrained(tmp_path / "x2")
    torch.manual_seed(0)
    make(KLVAE).save_pretrained(tmp_path / "usual")
    request = Request(
        [str(tmp_path / "x2"), str(tmp_path / "usual")],
        str(image_folder),
        tmp_path / "report",
        protocol="crop-29",
        limit=4,
        settings=Settings(cycle_images=2, cycle_rounds=(1,)),
    )
    results = evaluate(request, CPU)
    found = results.models["x2"]
    originals = [read(image_folder / f"{i * 70 // 4:03d}.png")[..., 2:31, 2:31] for i in range(4)]
    whole, small = [], []
    for original in map(to_images, originals):
        with torch.no_grad():
            # 29 pixels become 15, and 30 of which the last is cropped.
            sample = model(downscale(original, 2)).sample[..., :29, :29]
        whole.append(psnr(to_images(to_uint8(sample)), original))
        pair = (to_images(to_uint8(downscale(x, 2))) for x in (sample, original))
        small.append(psnr(*pair))
    assert found["psnr"].value == pytest.approx(torch.cat(whole).mean().item(), abs=1e-4)
    assert found["psnr_downscaled"].value == pytest.approx(torch.cat(small).mean().item(), abs=1e-4)
    assert "psnr_downscaled" not in results.models["usual"]
    assert any("upscales 2 times" in remark for remark in results.details["x2"].remarks)
    assert not any("upscales" in remark for remark in results.details["usual"].remarks)
    assert "PSNR downscaled" in (tmp_path / "report/results.md").read_text()


def test_images_too_small_for_one_enlarged_latent(model, measures, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    model.save_pretrained(tmp_path / "x2")
    request = Request([str(tmp_path / "x2")], str(image_folder), tmp_path / "report", protocol="crop-3")
    with pytest.raises(ValueError, match="stands for 4 pixels a side"):
        evaluate(request, CPU)


def test_reconstruct_writes_larger_pictures(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "x2")
    pixels = np.random.default_rng(0).integers(0, 255, (11, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(tmp_path / "x2")]
    assert cli.main(["reconstruct", *arguments]) == 0
    picture = read(tmp_path / "b.png")
    # Two of 22 x 28, each with a border of 2.
    assert picture.shape == (1, 3, 26, 64)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert torch.equal(picture[..., 2:24, 2:30], image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with torch.no_grad():
        sample = model(to_images(image)).sample
    assert torch.equal(picture[..., 2:24, 34:62], to_uint8(sample))
    expected = psnr(downscale(sample, 2), to_images(image)).item()
    assert f"{expected:.1f}" in capsys.readouterr().out


@pytest.fixture
def rgba():
    torch.manual_seed(0)
    return make(KLVAE, upscale=2, in_channels=4, out_channels=4)


def test_images_with_transparency_are_downscaled_by_alpha(rgba, measures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    rgba.save_pretrained(tmp_path / "x2")
    for number in range(3):
        write_cutout(tmp_path / f"data/{number}.npy", side=30, red=1 - number / 4)
    request = Request(
        [str(tmp_path / "x2")],
        str(tmp_path / "data"),
        tmp_path / "report",
        protocol="native",
        settings=Settings(cycle_images=0),
        alpha=True,
    )
    with encoded_images() as seen:
        results = evaluate(request, CPU)
    assert len(seen) > 1
    assert not any(shows_green(images) for images in seen)
    ratios = []
    for number in range(3):
        image = to_tensor(np.load(tmp_path / f"data/{number}.npy"))[None]
        with torch.no_grad():
            pair = (rgba(downscale(image, 2, alpha=True)).sample, image)
        ratios.append(composite_psnr(*(downscale(x, 2, alpha=True) for x in pair)))
    expected = torch.cat(ratios).mean().item()
    assert results.models["x2"]["psnr_downscaled"].value == pytest.approx(expected, abs=1e-3)


def test_a_model_is_another_one_with_alpha_only_where_it_downscales(rgba):
    usual = make(KLVAE, in_channels=4, out_channels=4)
    for model, upscales in ((rgba, True), (usual, False)):
        identities = {NamedModel("a", "a", model, alpha=alpha).identity for alpha in (True, False)}
        assert len(identities) == 1 + upscales


def test_the_demo_encodes_images_that_are_downscaled_by_alpha(rgba, tmp_path):
    image = read_image(write_cutout(tmp_path / "a.npy", side=28), 4, Reading(alpha=True)).fit((28, 28))
    for alpha in (True, False):
        with encoded_images() as seen:
            encode(NamedModel("a", "a", rgba, alpha=alpha), image)
        assert seen[0].shape == (1, 4, 14, 14)
        assert shows_green(seen[0]) != alpha


def test_larger_reconstructions_are_downscaled_by_alpha(rgba, tmp_path):
    image = write_cutout(tmp_path / "a.npy", side=12)
    (comparison,) = run_jobs(rgba, plan_jobs(image, tmp_path / "a.png"), alpha=True)
    original = to_tensor(np.load(image))[None]
    with torch.no_grad():
        sample = rgba(original).sample
    expected, as_bands = (
        composite_psnr(downscale(sample, 2, alpha=alpha), original).item() for alpha in (True, False)
    )
    assert comparison.psnr == pytest.approx(expected, abs=1e-4)
    assert abs(expected - as_bands) > 0.01
