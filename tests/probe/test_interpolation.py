import math

import pytest
import torch

from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.interpolation import interpolations, spherical
from latentae.probe.pipeline import build_pipeline, pipeline_autoencoder
from latentae.probe.sampling import sample_images
from tests.probe.conftest import tiny_model


def test_along_a_circle():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    third = spherical(first, second, 1 / 3)
    assert third.flatten().tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)])
    assert spherical(first, second, 0).tolist() == first.tolist()
    assert torch.allclose(spherical(first, second, 1), second, atol=1e-6)


def test_along_a_line_where_there_is_no_circle():
    first = torch.tensor([1.0, 2.0])
    assert spherical(first, 3 * first, 0.5).tolist() == [2.0, 4.0]


def test_rows_run_from_one_sample_to_the_next():
    denoiser = build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0)
    pipeline = build_pipeline(denoiser, pipeline_autoencoder(tiny_model()).vae)
    rows = interpolations(pipeline, [1, 0], seed=2, columns=3, steps=2)
    assert rows.shape == (2, 3, 3, 32, 32)
    samples = torch.cat(list(sample_images(pipeline, [1, 1, 0, 0], seed=2, steps=2)))
    ends = torch.stack([rows[0, 0], rows[0, 2], rows[1, 0], rows[1, 2]])
    assert (ends.int() - samples.int()).abs().max() <= 1
