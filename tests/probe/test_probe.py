"""The probe's folder, errors and how it goes on; tests/probe/test_end_to_end.py has the whole chain."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from latentae.evaluation.models import NamedModel
from latentae.probe.denoiser import NULL_LABEL, DenoiserSize
from latentae.probe.folder import ModelFolder, ProbeFolder
from latentae.probe.generation import GenerationEvaluator
from latentae.probe.pipeline import pipeline_autoencoder
from latentae.probe.probe import ModelProbe, _remarks, probe
from latentae.probe.request import ProbeRequest, open_images
from tests.data.pictures import encoded_images, shows_green, write_cutout
from tests.probe.conftest import draw_images, tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def request_of(image_folder, tmp_path):
    """A probe of six steps of the models ``a`` and ``b``, which ``models`` opens."""
    return ProbeRequest(
        models=["a=kl", "b=vq"],
        data=str(image_folder),
        out=tmp_path / "probe",
        steps=6,
        batch_size=8,
        image_size=32,
        samples=6,
        sampling_steps=3,
        size=DenoiserSize(32, 1),
    )


def models(path):
    return tiny_model(path, seed=3)


def run(request, measures, **arguments):
    said = []
    results = probe(request, CPU, said.append, arguments.pop("open_model", models), measures, **arguments)
    return results, said


def numbers(results):
    """All that a probe measures, without what a clock says."""
    return {
        name: (model.metrics, [replace(point, seconds=0) for point in model.curve])
        for name, model in results.models.items()
    }


def test_interrupted_goes_on_to_the_same_numbers(request_of, measures, tmp_path, monkeypatch):
    whole, _ = run(replace(request_of, out=tmp_path / "whole"), measures)
    assert list(whole.models) == ["a", "b"]
    assert {len(model.curve) for model in whole.models.values()} == {6}

    monkeypatch.setattr("latentae.probe.probe._SAVE_EVERY", 0)
    monkeypatch.setattr("latentae.probe.probe._STRIDE", 4)
    said = []

    def interrupt(text):
        said.append(text)
        if text.startswith("b: step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(request_of, CPU, interrupt, models, measures)
    again, said = run(request_of, measures)
    assert "a: finished earlier" in said
    assert "b: continues after step 4" in said
    assert numbers(again) == numbers(whole)
    for file in ("a/samples.png", "b/samples.png", "b/neighbours.png", "b/interpolations.png"):
        assert (request_of.out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (request_of.out / "b" / "training.pt").exists()

    same, said = run(request_of, measures)
    assert said == [f"the probe in {request_of.out} is complete"]
    assert same == again


def test_report(request_of, measures):
    results, _ = run(request_of, measures)
    out = request_of.out
    stored = json.loads((out / "results.json").read_text())
    assert stored["settings"]["steps"] == 6
    assert stored["models"]["a"]["metrics"] == results.models["a"].metrics
    assert set(results.reconstruction["a"]) >= {"psnr", "ssim"}
    page = (out / "probe.html").read_text()
    assert page.count("data:image/") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert "FD-VGG16, generated" in (out / "probe.md").read_text()


def test_other_settings_overwrite_nothing(request_of, measures):
    run(request_of, measures)
    before = {path: path.read_bytes() for path in request_of.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"was begun with steps 6, and this is 7: choose another --out"):
        run(replace(request_of, steps=7), measures)
    with pytest.raises(ValueError, match="another model as a, b, or"):
        run(request_of, measures, open_model=lambda path: tiny_model(path, seed=4))
    assert {path: path.read_bytes() for path in request_of.out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "48 training images, fewer than a batch of 64: choose a smaller --batch-size"),
        ({"image_size": 30}, "image_size is 30, but a needs a multiple of 4"),
        ({"models": ["a=grey", "b=kl"]}, r"different numbers of channels \(a 1, b 3\)"),
        ({"models": ["a=unscaled"]}, "a: the scale of its latents is not known: measure it"),
        ({"data": "nowhere/at/all"}, "nowhere/at/all"),
        ({"alpha": True}, "alpha is set, but the models take images of 3 channels"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(request_of, measures, changes, message):
    kinds = {
        "grey": lambda: tiny_model(in_channels=1, out_channels=1),
        "unscaled": lambda: tiny_model(scaling_factor=None),
    }
    with pytest.raises(ValueError, match=message):
        run(
            replace(request_of, **changes),
            measures,
            open_model=lambda path: kinds.get(path, lambda: models(path))(),
        )
    assert not request_of.out.exists()


def test_no_images(request_of, measures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        run(replace(request_of, data=str(tmp_path / "empty")), measures)


def test_constant_latents_are_named(request_of, measures):
    def constant(path):
        model = tiny_model("kl")
        with torch.no_grad():
            model.quant_conv.weight[0] = 0
            model.quant_conv.bias[4] = -100  # and no noise of the posterior
        return model

    with pytest.raises(ValueError, match=r"a: its latent channel\(s\) \[0\] do not vary"):
        run(replace(request_of, models=["a=kl"]), measures, open_model=constant)


def test_reconstructions_of_transparent_images_are_measured_as_composites(request_of, measures):
    for path in Path(request_of.data).rglob("*.png"):
        image = Image.open(path)
        image.putalpha(128)
        image.save(path)
    rgba = tiny_model(in_channels=4, out_channels=4)
    request = replace(request_of, models=["a=kl"], alpha=True)
    results, _ = run(request, measures, open_model=lambda path: rgba)
    assert {"psnr_black", "psnr_white", "alpha_psnr"} <= set(results.reconstruction["a"])


@pytest.mark.parametrize("alpha", [True, False])
def test_arrays_are_resized_by_their_alpha(request_of, measures, tmp_path, alpha):
    """Those that are encoded for the denoiser, and those that are reconstructed and measured."""
    for number in range(16):
        write_cutout(tmp_path / f"arrays/{number:02d}.npy", side=46, red=number / 16)
    request = replace(request_of, models=["a=kl"], data=str(tmp_path / "arrays"), alpha=alpha, steps=1)
    rgba = tiny_model(in_channels=4, out_channels=4)
    with encoded_images() as seen:
        run(request, measures, open_model=lambda path: rgba)
    assert len(seen) > 4
    assert all(shows_green(images) != alpha for images in seen)


def test_images_of_several_sizes_are_cropped(request_of, measures, image_folder):
    draw_images(image_folder / "train" / "larger", 4, size=48)
    results, _ = run(replace(request_of, models=["a=kl"], unconditional=True), measures)
    assert results.settings["training_images"] == 52
    assert results.models["a"].latent_shape == [4, 8, 8]


def test_mended_options_are_accepted_after_a_refusal(request_of, measures):
    guided = replace(request_of, unconditional=True, guidance_scale=2.0)
    with pytest.raises(ValueError, match="no labels to be guided by: leave it out"):
        run(guided, measures)
    assert not request_of.out.exists()


@pytest.mark.parametrize(
    ("samples", "expected"), [(6, None), (16, "with 32 images .* with 48"), (99, "with 24 images")]
)
def test_a_floor_of_fewer_images_is_remarked(samples, expected):
    remarks = [
        remark
        for remark in _remarks(48, samples, {"a": SimpleNamespace(parameters=5)})
        if remark.startswith("FD, real")
    ]
    assert len(remarks) == (expected is not None)
    assert expected is None or re.search(expected, remarks[0])


CPU = torch.device("cpu")


def cached(folder, model, **changes):
    request = ProbeRequest(
        models=["a"], data=str(folder), out=folder / "out", image_size=32, batch_size=8, **changes
    )
    images = open_images(request, 3)
    offset = torch.tensor([0.5, 0.0, 0.0, 0.0])
    own = ModelFolder(folder.parent / "cache_of_it")
    job = ModelProbe(request, None, images, None, 4, CPU, lambda text: None)
    return job.cache_latents(model, offset, own)


def test_latents_labels_and_variance(image_folder):
    latents = cached(image_folder, tiny_model("vq"), flips=False)
    assert latents.training.latent_shape == (4, 8, 8)
    assert len(latents.held_out.latents) == 12
    assert latents.label_names == ["disc", "stripe"]
    assert latents.labels.bincount().tolist() == [24, 24]
    assert latents.held_out.labels.tolist() == [0] * 6 + [1] * 6
    whole = torch.stack([latents.training[index]["latents"] for index in range(48)])
    assert torch.allclose(latents.variance, whole.var(dim=(0, 2, 3)))


def test_held_out_latents_are_offset(image_folder):
    model = tiny_model("vq")
    latents = cached(image_folder, model, flips=False)
    images = open_images(
        ProbeRequest(["a"], str(image_folder), image_folder / "out", image_size=32, batch_size=8), 3
    )
    with torch.no_grad():
        expected = model.to_latents(images.measured.prepare(0)[None])[0]
    expected[0] += 0.5
    assert torch.allclose(latents.held_out.latents[0], expected, atol=2e-2)  # the cache holds 16 bits


def test_labels_that_are_left_alone(image_folder):
    latents = cached(image_folder, tiny_model("vq"), unconditional=True)
    assert (latents.labels, latents.label_names) == (None, None)


def test_classes_that_training_does_not_have(image_folder):
    draw_images(image_folder / "val" / "another", 2)
    for path in sorted((image_folder / "val" / "another").rglob("*.png")):
        path.rename(image_folder / "val" / "another" / path.name)
    latents = cached(image_folder, tiny_model("vq"))
    assert latents.held_out.labels.tolist() == [NULL_LABEL] * 2 + [0] * 6 + [1] * 6


def test_latents_that_do_not_vary(image_folder):
    model = tiny_model("vq")
    with torch.no_grad():
        model.quant_conv.weight[2] = 0
    with pytest.raises(ValueError, match=r"channel\(s\) \[2\] do not vary"):
        cached(image_folder, model)


def test_one_model_once(image_folder, tmp_path):
    request = ProbeRequest(
        ["a"],
        str(image_folder),
        tmp_path / "probe",
        steps=4,
        batch_size=8,
        image_size=32,
        samples=3,
        sampling_steps=2,
        size=DenoiserSize(32, 1),
    )
    images = open_images(request, 3)
    said = []
    job = ModelProbe(
        request,
        ProbeFolder(request.out),
        images,
        GenerationEvaluator(images, {}, {}, [], request, CPU),
        4,
        CPU,
        said.append,
    )
    model = tiny_model("vq")
    subject, decoder = NamedModel("a", "somewhere", model), pipeline_autoencoder(model)
    result = job.run(subject, decoder)
    assert (result.class_name, result.latent_shape, result.patch_size) == ("VQVAE", [4, 8, 8], 2)
    assert [point.step for point in result.curve] == [1, 2, 3, 4]
    assert result.metrics["flow_loss"] == result.curve[-1].validation_loss
    assert result.pictures == {"samples": "a/samples.png", "interpolations": "a/interpolations.png"}
    assert (request.out / "a" / "pipeline" / "model_index.json").is_file()
    assert job.run(subject, decoder) == result
    assert said[-1] == "a: finished earlier"
