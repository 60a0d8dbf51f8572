import math

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation.models import NamedModel
from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.features import extract_features, real_images
from latentae.probe.generation import (
    GenerationEvaluator,
    decode_latents,
    denoise,
    draw_labels,
    initial_noise,
    interpolate_samples,
    noise_between,
    sample_images,
)
from latentae.probe.pipeline import build_pipeline, pipeline_autoencoder
from latentae.probe.request import ProbeRequest, open_images
from latentae.report.grids import checkerboard
from tests.probe.conftest import tiny_model


@pytest.fixture(scope="module")
def pipeline():
    denoiser = build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0)
    with torch.no_grad():
        denoiser.proj_out_2.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return build_pipeline(denoiser, pipeline_autoencoder(tiny_model()).vae)


def difference(first, second):
    return (first.int() - second.int()).abs().max().item()


def test_a_picture_is_a_function_of_seed_number_and_label(pipeline):
    labels = [0, 1, 2, 0, 1]
    whole = torch.cat(list(sample_images(pipeline, labels, seed=3, steps=2)))
    parts = list(sample_images(pipeline, labels, seed=3, steps=2, batch_size=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert difference(torch.cat(parts), whole) <= 1
    assert (whole.shape, whole.dtype) == ((5, 3, 32, 32), torch.uint8)
    other = torch.cat(list(sample_images(pipeline, labels, seed=4, steps=2)))
    assert difference(whole, other) > 10


def test_noise_that_is_given_comes_out_as_from_the_pipeline(pipeline):
    labels = [0, 1, 2]
    expected = torch.cat(list(sample_images(pipeline, labels, seed=3, steps=4)))
    noise = torch.stack([initial_noise(pipeline, 3, number) for number in range(3)])
    assert torch.equal(denoise(pipeline, noise, labels, steps=4), expected)


def test_decoded_by_the_scale(pipeline):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.8).sample.clamp(-1, 1)
    assert torch.equal(decode_latents(pipeline, latents), ((expected + 1) * 127.5).round().to(torch.uint8))


def test_noise_between_two_lies_on_a_circle():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    points = noise_between(first, second, 4)
    assert points[1].flatten().tolist() == pytest.approx(
        [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]
    )
    assert torch.equal(points[0], first)
    assert torch.allclose(points[3], second, atol=1e-6)


@pytest.mark.parametrize("factor", [3, -3])
def test_noise_between_two_in_one_or_opposite_directions_lies_on_a_line(factor):
    first = torch.tensor([1.0, 2.0])
    assert noise_between(first, factor * first, 3)[1].tolist() == [(1 + factor) / 2, 1 + factor]


def test_rows_run_from_one_sample_to_the_next():
    denoiser = build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0)
    pipeline = build_pipeline(denoiser, pipeline_autoencoder(tiny_model()).vae)
    rows = interpolate_samples(pipeline, [1, 0], seed=2, columns=3, steps=2)
    assert rows.shape == (2, 3, 3, 32, 32)
    samples = torch.cat(list(sample_images(pipeline, [1, 1, 0, 0], seed=2, steps=2)))
    ends = torch.stack([rows[0, 0], rows[0, 2], rows[1, 0], rows[1, 2]])
    assert (ends.int() - samples.int()).abs().max() <= 1


CPU = torch.device("cpu")


@pytest.fixture
def evaluator(image_folder, measures, tmp_path):
    request = ProbeRequest(["a"], str(image_folder), tmp_path, image_size=32, samples=10, sampling_steps=2)
    images = open_images(request, 3)
    indices = []
    real = extract_features(real_images(images.reference, indices=indices), measures.features, CPU)
    return GenerationEvaluator(images, measures.features, real, indices, request, CPU)


def test_what_is_measured_and_shown(evaluator, tmp_path):
    model = tiny_model()
    denoiser = build_denoiser((4, 8, 8), 8, DenoiserSize(32, 1), 0)
    pipeline = build_pipeline(denoiser, pipeline_autoencoder(model).vae)
    found = evaluator.evaluate(pipeline, NamedModel("a", "somewhere", model), [0] * 10, tmp_path)
    distances = {name: found.metrics[f"fd_vgg16_{name}"] for name in ("generated", "real", "noise")}
    assert distances["real"] < 0.5 * distances["generated"]
    # A denoiser that predicts nothing leaves the noise as it is.
    assert distances["generated"] == pytest.approx(distances["noise"], rel=0.01)
    assert found.metrics["copied_share"] in [share / 10 for share in range(11)]
    assert found.sample_seconds > 0
    sizes = {
        kind: Image.open(tmp_path / f"{kind}.png").size
        for kind in ("samples", "neighbours", "interpolations")
    }
    assert sizes == {"samples": (288, 72), "neighbours": (288, 72), "interpolations": (288, 144)}
    # Below each sample its nearest image, from the training set.
    grid = np.array(Image.open(tmp_path / "neighbours.png"))
    shown = grid[38:70, 2:34]
    real = [((evaluator.images.reference.prepare(index) + 1) * 127.5).round() for index in evaluator.indices]
    assert any(np.array_equal(shown, image.permute(1, 2, 0).numpy().astype(np.uint8)) for image in real)


def test_transparent_images_are_shown_on_a_checkerboard(measures, tmp_path):
    for number in range(8):
        transparent = Image.new("RGBA", (32, 32), (10 * number, 0, 0, 0))
        (tmp_path / "images").mkdir(exist_ok=True)
        transparent.save(tmp_path / f"images/{number}.png")
    given = {"image_size": 32, "batch_size": 4, "samples": 4, "sampling_steps": 1, "alpha": True}
    request = ProbeRequest(["a"], str(tmp_path / "images"), tmp_path, **given)
    images, indices = open_images(request, 4), []
    real = extract_features(
        real_images(images.reference, indices=indices), measures.features, CPU, alpha=True
    )
    model = tiny_model(in_channels=4, out_channels=4)
    with torch.no_grad():  # it decodes images whose alpha is -1
        model.decoder.conv_out.weight.zero_()
        model.decoder.conv_out.bias.copy_(torch.tensor([1.0, 0.5, -0.5, -1.0]))
    pipeline = build_pipeline(
        build_denoiser((4, 8, 8), 8, DenoiserSize(32, 1), 0), pipeline_autoencoder(model).vae
    )
    evaluator = GenerationEvaluator(images, measures.features, real, indices, request, CPU)
    evaluator.evaluate(pipeline, NamedModel("a", "somewhere", model), [0] * 4, tmp_path)
    for kind in ("samples", "interpolations", "neighbours"):
        shown = np.array(Image.open(tmp_path / f"{kind}.png"))
        assert np.array_equal(shown[2:34, 2:34], checkerboard(32, 32))
    assert np.array_equal(shown[38:70, 2:34], checkerboard(32, 32))  # the real images, too


def test_without_networks(evaluator, tmp_path):
    evaluator.extractors, evaluator.real = {}, {}
    pipeline = build_pipeline(
        build_denoiser((4, 8, 8), 8, DenoiserSize(32, 1), 0), pipeline_autoencoder(tiny_model()).vae
    )
    found = evaluator.evaluate(pipeline, NamedModel("a", "somewhere", tiny_model()), [0] * 10, tmp_path)
    assert found.metrics == {}
    assert (tmp_path / "samples.png").is_file()
    assert not (tmp_path / "neighbours.png").exists()


def test_labels_are_as_frequent_as_in_training():
    labels = draw_labels(torch.tensor([0] * 10 + [1] * 30), 4000, seed=0)
    assert np.mean(labels) == pytest.approx(0.75, abs=0.03)
    assert draw_labels(torch.tensor([0] * 10 + [1] * 30), 4, seed=0) == labels[:4]
    assert draw_labels(None, 3, seed=0) == [0, 0, 0]
