import pytest
import torch
import torch.nn.functional as F

from latentae.losses import alignment as alignment_module
from latentae.losses.alignment import Alignment
from latentae.training.memory import WorkingSpace


def maps(*positions):
    """[1, d, 1, n] of n vectors."""
    return torch.tensor(positions, dtype=torch.float64).T[None, :, None]


def test_by_hand():
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
    monkeypatch.setattr(alignment_module, "_BLOCK", block)
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
    monkeypatch.setattr(alignment_module, "_BLOCK", 2**14)
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
