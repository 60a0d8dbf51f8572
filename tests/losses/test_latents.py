from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from latentae.losses import latents as latents_module
from latentae.losses.feature_maps import resize
from latentae.losses.latents import (
    Alignment,
    Equivariance,
    LatentNoise,
    Spectral,
    Transform,
    deviation,
    low_pass,
)
from latentae.training.dry_run import WorkingSpace


def draws(equivariance, count=4000):
    generator = torch.Generator().manual_seed(0)
    return [equivariance.draw(generator) for _ in range(count)]


def test_a_quarter_turn_by_hand():
    latents = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert Transform(1.0, 1).latents(latents).flatten().tolist() == [1, 3, 0, 2]
    pixels = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
    turned = Transform(1.0, 1).images(pixels, 2)
    assert torch.equal(
        turned, Transform(1.0, 1).latents(latents).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


@pytest.mark.parametrize(
    ("scale", "turns", "size"),
    [(0.5, 0, (4, 6)), (0.5, 1, (6, 4)), (0.3, 2, (2, 4)), (0.01, 3, (1, 1)), (0.99, 0, (8, 12))],
)
def test_images_are_as_large_as_latents_decode_to(scale, turns, size):
    transform = Transform(scale, turns)
    assert transform.latents(torch.rand(2, 4, 8, 12)).shape == (2, 4, *size)
    assert transform.images(torch.rand(2, 3, 32, 48), 4).shape == (2, 3, size[0] * 4, size[1] * 4)


def test_half_scale_by_hand():
    """Means with weights 1, 3, 3, 1 along each side; a checkerboard becomes grey."""
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).double()[None, None]
    halved = Transform(0.5).latents(board)
    torch.testing.assert_close(halved[..., 1:-1, 1:-1], torch.full((1, 1, 2, 2), 0.5).double())


def test_how_often():
    seen = draws(Equivariance(probability=0.5, low_resolution_probability=0.25))
    plain = sum(draw is None for draw in seen)
    before = sum(draw is not None and draw.before_encoding for draw in seen)
    # Within four standard deviations of shares 3/8 and 1/8.
    assert abs(plain / 4000 - 0.375) < 0.031
    assert abs(before / 4000 - 0.125) < 0.021


def test_which():
    transforms = [draw.transform for draw in draws(Equivariance(1.0, min_scale=0.25))]
    turns = Counter(transform.quarter_turns for transform in transforms)
    assert set(turns) == {1, 2, 3}
    assert min(turns.values()) > 1200
    scales = torch.tensor([transform.scale for transform in transforms])
    assert 0.25 <= scales.min() < 0.26
    assert 0.99 < scales.max() < 1
    assert scales.mean().item() == pytest.approx(0.625, abs=0.014)


def test_without_turns_and_without_small_images():
    seen = draws(Equivariance(0.5, rotate=False, low_resolution_probability=0.0), 200)
    assert {draw.transform.quarter_turns for draw in seen if draw is not None} == {0}
    assert not any(draw.before_encoding for draw in seen if draw is not None)


def test_latent_noise_by_hand():
    """Channels of deviations 1 and 7: their root mean square is 5; σ is 0.1 · 2 for the first image."""
    latents = torch.tensor([[1.0, 10.0], [-1.0, -4.0]], dtype=torch.float64)[:, :, None, None]
    torch.testing.assert_close(deviation(latents), torch.tensor(5.0, dtype=torch.float64))
    noise = torch.tensor([[1.0, -1.0], [3.0, 0.0]])[:, :, None, None]
    noisy = LatentNoise(0.1)(latents, noise, torch.tensor([-2.0, 0.0]))
    torch.testing.assert_close(noisy[0].flatten(), torch.tensor([2.0, 9.0], dtype=torch.float64))
    assert torch.equal(noisy[1], latents[1])


def test_larger_latents_get_larger_noise():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    strength, add = torch.tensor([1.0, -0.3, 2.0]), LatentNoise(0.5)
    torch.testing.assert_close(add(100 * latents, noise, strength), 100 * add(latents, noise, strength))


def test_the_gradient_is_that_of_adding():
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    add = LatentNoise(0.5)
    add(latents, torch.randn(2, 3, 4, 4), torch.randn(2)).sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_latents_get_none(value):
    latents = torch.full((2, 3, 4, 4), value)
    noisy = LatentNoise(0.5)(latents, torch.randn(2, 3, 4, 4), torch.ones(2))
    torch.testing.assert_close(noisy, latents, atol=1e-3, rtol=0)


def test_factors_are_drawn_evenly():
    generator = torch.Generator().manual_seed(0)
    spectral = Spectral(factors=(2, 4, 8))
    drawn = [spectral.draw(generator) for _ in range(3000)]
    assert set(drawn) == {2, 4, 8}
    assert all(abs(drawn.count(factor) - 1000) < 110 for factor in (2, 4, 8))


@pytest.mark.parametrize("factors", [(), (1, 2)])
def test_factors_that_make_nothing_smaller(factors):
    with pytest.raises(ValueError, match=r"factors are \[.*\]: give whole numbers of 2 or more"):
        Spectral(factors=factors)


@pytest.mark.parametrize(
    ("factor", "latents", "pixels"), [(2, (4, 6), (16, 24)), (4, (2, 3), (8, 12)), (16, (1, 1), (4, 4))]
)
def test_sizes(factor, latents, pixels):
    assert low_pass(torch.rand(1, 2, 8, 12), factor).shape[-2:] == latents
    assert low_pass(torch.rand(1, 3, 32, 48), factor, unit=4).shape[-2:] == pixels


def test_high_frequencies_go_and_low_ones_stay():
    x = torch.arange(64, dtype=torch.float64)
    fast, slow = (torch.cos(torch.pi * cycles * (x + 0.5) / 64).expand(1, 1, 64, 64) for cycles in (60, 2))
    assert low_pass(fast, 2)[..., 2:-2].abs().max() < 0.01
    expected = torch.cos(torch.pi * 2 * (torch.arange(32) + 0.5) / 32).expand(1, 1, 32, 32).double()
    torch.testing.assert_close(low_pass(slow, 2)[..., 1:-1], expected[..., 1:-1], atol=0.01, rtol=0)
    assert torch.equal(low_pass(slow, 2), resize(slow, (32, 32)))


def maps(*positions):
    """[1, d, 1, n] of n vectors."""
    return torch.tensor(positions, dtype=torch.float64).T[None, :, None]


def test_alignment_by_hand():
    """Cosines with the features: 1 and 0; of the two latents: 0.6, of the two features: 1."""
    latents, features = maps((2.0, 0.0), (0.6, 0.8)), maps((3.0, 0.0), (5.0, 0.0))
    cosine, similarity = Alignment(cosine_margin=0.0, similarity_margin=0.0)(latents, features)
    assert cosine.item() == pytest.approx((0 + 0.4) / 2)
    # Each latent with itself agrees; the two pairs of both differ by 0.4.
    assert similarity.item() == pytest.approx(2 * 0.4 / 4)
    cosine, similarity = Alignment(cosine_margin=0.3, similarity_margin=0.25)(latents, features)
    assert cosine.item() == pytest.approx((0 + 0.1) / 2)
    assert similarity.item() == pytest.approx(2 * 0.15 / 4)
    assert [x.item() for x in Alignment()(latents, features)] == pytest.approx([0, 2 * 0.15 / 4])


def test_images_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    latents, features = torch.randn(2, 3, 5, 4, 4, generator=generator, dtype=torch.float64)
    alignment = Alignment(cosine_margin=0.1, similarity_margin=0.1)
    whole = torch.stack(alignment(latents, features))
    alone = torch.stack(
        [torch.stack(alignment(z, f)) for z, f in zip(latents.split(1), features.split(1), strict=True)]
    )
    torch.testing.assert_close(whole, alone.mean(dim=0))


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    latents, features = torch.randn(2, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: Alignment()(z, features), latents.requires_grad_())


def test_nothing_to_gain_within_the_margins():
    latents = maps((1.0, 0.1), (0.1, 1.0)).requires_grad_()
    terms = torch.stack(Alignment()(latents, maps((1.0, 0.0), (0.0, 1.0))))
    terms.sum().backward()
    assert terms.tolist() == [0, 0]
    assert not latents.grad.any()


def test_calculated_in_float32():
    latents = torch.randn(1, 4, 4, 4)
    cosine, similarity = Alignment()(latents.half(), latents)
    assert cosine.dtype == similarity.dtype == torch.float32


def whole_matrices(alignment, projected, features):
    """The similarity term as the paper's program computes it, with both matrices at once."""
    z, f = (F.normalize(x.flatten(2), dim=1) for x in (projected, features))
    difference = z.transpose(1, 2) @ z - f.transpose(1, 2) @ f
    return F.relu(difference.abs() - alignment.similarity_margin).mean()


@pytest.mark.parametrize("block", [1, 7, 60, 400, 1000, 2**22])
def test_blocks_come_to_the_whole_matrices(monkeypatch, block):
    """Blocks of one row, of a few, of an image, of two, of all three."""
    monkeypatch.setattr(latents_module, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    latents, features = torch.randn(2, 3, 6, 4, 5, generator=generator, dtype=torch.float64)
    alignment, results = Alignment(cosine_margin=1.0, similarity_margin=0.1), []
    for compute in (lambda z: alignment(z, features)[1], lambda z: whole_matrices(alignment, z, features)):
        z = latents.clone().requires_grad_()
        value = compute(z)
        (gradient,) = torch.autograd.grad(3 * value, z)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-14)
    assert results[0][1].abs().max() > 1e-4


def test_memory_grows_with_the_positions_and_not_with_their_square(monkeypatch):
    """Both matrices of 1024 positions, and their difference, would take 12 MiB and more."""
    monkeypatch.setattr(latents_module, "_BLOCK", 2**14)
    peaks = []
    for side in (16, 32):
        latents, features = torch.randn(2, 1, 4, side, side)
        with WorkingSpace() as space:
            sum(Alignment()(latents.requires_grad_(), features)).backward()
        peaks.append(space.peak)
    assert peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 2**20


def test_under_autocast_it_is_float32():
    latents, features = torch.randn(2, 2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = Alignment()(latents, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(Alignment()(latents, features)), torch.stack(expected))
