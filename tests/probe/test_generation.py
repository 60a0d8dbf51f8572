import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation.subject import Subject
from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.features import features_of, readable
from latentae.probe.generation import Judge, draw_labels
from latentae.probe.images import open_images
from latentae.probe.pipeline import build_pipeline, pipeline_autoencoder
from latentae.probe.request import ProbeRequest
from tests.probe.conftest import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def judge(image_folder, measures, tmp_path):
    request = ProbeRequest(["a"], str(image_folder), tmp_path, image_size=32, samples=10, sampling_steps=2)
    images = open_images(request, 3)
    indices, pictures = readable(images.reference)
    real = features_of(pictures, measures.features, CPU)
    return Judge(images, measures.features, real, indices, request, CPU)


def test_what_is_measured_and_shown(judge, tmp_path):
    model = tiny_model()
    denoiser = build_denoiser((4, 8, 8), 8, DenoiserSize(32, 1), 0)
    pipeline = build_pipeline(denoiser, pipeline_autoencoder(model).vae)
    found = judge(pipeline, Subject("a", "somewhere", model), [0] * 10, tmp_path)
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
    real = [((judge.images.reference.prepare(index) + 1) * 127.5).round() for index in judge.indices]
    assert any(np.array_equal(shown, image.permute(1, 2, 0).numpy().astype(np.uint8)) for image in real)


def test_without_networks(judge, tmp_path):
    judge.extractors, judge.real = {}, {}
    pipeline = build_pipeline(
        build_denoiser((4, 8, 8), 8, DenoiserSize(32, 1), 0), pipeline_autoencoder(tiny_model()).vae
    )
    found = judge(pipeline, Subject("a", "somewhere", tiny_model()), [0] * 10, tmp_path)
    assert found.metrics == {}
    assert (tmp_path / "samples.png").is_file()
    assert not (tmp_path / "neighbours.png").exists()


def test_labels_are_as_frequent_as_in_training():
    labels = draw_labels(torch.tensor([0] * 10 + [1] * 30), 4000, seed=0)
    assert np.mean(labels) == pytest.approx(0.75, abs=0.03)
    assert draw_labels(torch.tensor([0] * 10 + [1] * 30), 4, seed=0) == labels[:4]
    assert draw_labels(None, 3, seed=0) == [0, 0, 0]
