import pytest
import torch
from scipy.stats import kurtosis

from latentae.evaluation.latent_moments import LatentMoments


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(6, 3, 4, 5, generator=generator).pow(3) + torch.tensor([0.0, 50.0, -7.0])[:, None, None]
    )


def test_are_scipys(latents):
    moments = LatentMoments(3)
    for piece in latents.split(4):
        moments.add(piece)
    result = moments.result()
    for channel in range(3):
        values = latents[:, channel].double().flatten()
        assert result.mean[channel] == pytest.approx(values.mean().item(), rel=1e-12)
        assert result.std[channel] == pytest.approx(values.std(correction=0).item(), rel=1e-12)
        assert result.kurtosis[channel] == pytest.approx(kurtosis(values), rel=1e-9)


def test_pieces_merge_and_survive_storage(latents):
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


def test_nothing_was_seen():
    with pytest.raises(ValueError, match="no latents"):
        LatentMoments(1).result()
