import pytest
import torch

from latentae.losses.alignment import Alignment


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
