import math

import pytest
import torch
from scipy.stats import kurtosis

from latentae.evaluation.rate import CodeMeter, LatentMoments, kl_bits_per_pixel


def test_kl_by_hand():
    mean, log_variance = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    assert kl_bits_per_pixel(mean, log_variance, 2, 4).tolist() == pytest.approx([0, 2 / math.log(2) / 8])


def test_codes_by_hand():
    meter = CodeMeter(num_codes=4)
    meter.add(torch.tensor([[[0, 0], [1, 1]]]), 4, 4)
    rate = meter.result()
    assert rate.bits_per_pixel == 4 * 2 / 16
    assert rate.entropy_bits_per_pixel == pytest.approx(4 * 1 / 16)
    assert rate.codebook_usage == 0.5
    assert rate.codebook_perplexity == pytest.approx(2)


def test_several_tables():
    meter = CodeMeter(num_codes=2, depth=2)
    meter.add(torch.tensor([[[[0, 1]], [[1, 1]]]]), 2, 4)
    rate = meter.result()
    assert rate.bits_per_pixel == 2 * 2 / 8
    assert rate.entropy_bits_per_pixel == pytest.approx(2 / 8)
    assert rate.codebook_usage == 0.75
    assert rate.codebook_perplexity == pytest.approx(1.5)


def test_codes_merge_and_survive_storage():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 7, (6, 2, 3), generator=generator)
    whole, left, right = CodeMeter(8), CodeMeter(8), CodeMeter(8)
    whole.add(indices, 4, 6)
    left.add(indices[:2], 4, 6)
    right.add(indices[2:], 4, 6)
    left.merge(CodeMeter.from_state(right.state()))
    assert left.result() == whole.result()


def test_codes_that_cannot_be_counted():
    with pytest.raises(ValueError, match="no codes"):
        CodeMeter(2).result()
    with pytest.raises(ValueError, match="outside the 2 codes"):
        CodeMeter(2).add(torch.tensor([[[2]]]), 1, 1)
    with pytest.raises(ValueError, match="of 1 tables, but the meter is of 2"):
        CodeMeter(2, depth=2).add(torch.tensor([[[0]]]), 1, 1)


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(6, 3, 4, 5, generator=generator).pow(3) + torch.tensor([0.0, 50.0, -7.0])[:, None, None]
    )


def test_moments_are_scipys(latents):
    moments = LatentMoments(3)
    for piece in latents.split(4):
        moments.add(piece)
    result = moments.result()
    for channel in range(3):
        values = latents[:, channel].double().flatten()
        assert result.mean[channel] == pytest.approx(values.mean().item(), rel=1e-12)
        assert result.std[channel] == pytest.approx(values.std(correction=0).item(), rel=1e-12)
        assert result.kurtosis[channel] == pytest.approx(kurtosis(values), rel=1e-9)


def test_moments_merge_and_survive_storage(latents):
    whole, left, right = LatentMoments(3), LatentMoments(3), LatentMoments(3)
    whole.add(latents)
    left.add(latents[:1])
    right.add(latents[1:])
    left.merge(LatentMoments.from_state(right.state()))
    assert left.result().kurtosis == pytest.approx(whole.result().kurtosis, rel=1e-12)


def test_a_constant_channel():
    moments = LatentMoments(1)
    moments.add(torch.full((1, 1, 2, 2), 5.0))
    result = moments.result()
    assert (result.mean, result.std, result.kurtosis) == ([5.0], [0.0], [0.0])


def test_no_latents_have_no_moments():
    with pytest.raises(ValueError, match="no latents"):
        LatentMoments(1).result()
