import math

import pytest
import torch

from latentae.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialTerms

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])


def softplus(value):
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("hinge", 0.5, ((0 + 0.5) / 2 + (0 + 2) / 2) / 2),
        (
            "non_saturating",
            (softplus(2) + softplus(-1)) / 2,
            ((softplus(-2) + softplus(-0.5)) / 2 + (softplus(-2) + softplus(1)) / 2) / 2,
        ),
        ("least_squares", (9 + 0) / 2 / 2, ((1 + 0.25) / 2 + (4 + 1) / 2) / 2),
    ],
)
def test_losses_by_hand(name, generator, discriminator):
    loss = ADVERSARIAL_LOSSES[name]
    assert loss.generator(FAKE).item() == pytest.approx(generator)
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(discriminator)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_the_players_pull_in_opposite_directions(name):
    loss = ADVERSARIAL_LOSSES[name]
    boundary = torch.tensor([loss.boundary], requires_grad=True)
    (wanted,) = torch.autograd.grad(loss.generator(boundary), boundary)
    (as_fake,) = torch.autograd.grad(loss.discriminator(boundary.detach(), boundary), boundary)
    (as_real,) = torch.autograd.grad(loss.discriminator(boundary, boundary.detach()), boundary)
    assert wanted < 0 < as_fake
    # Undecided, the discriminator is drawn as strongly to either side.
    assert as_real.item() == pytest.approx(-as_fake.item())


def test_when_the_terms_begin():
    terms = AdversarialTerms(start_step=10, discriminator_warmup_steps=4)
    assert [terms.discriminator_learns(step) for step in (5, 6, 10)] == [False, True, True]
    assert [terms.autoencoder_learns(step) for step in (6, 9, 10)] == [False, False, True]
    assert AdversarialTerms(start_step=2, discriminator_warmup_steps=4).first_discriminator_step == 0


def test_the_discriminator_learns_now_and_then():
    terms = AdversarialTerms(start_step=4, discriminator_warmup_steps=1, update_every=3)
    assert [step for step in range(12) if terms.discriminator_learns(step)] == [3, 6, 9]
    assert [terms.discriminator_updates(step) for step in (0, 3, 4, 6, 7, 9)] == [0, 0, 1, 1, 2, 2]
    assert [step for step in range(12) if terms.autoencoder_learns(step)] == list(range(4, 12))


def test_the_weight_rises_linearly():
    terms = AdversarialTerms(weight=0.8, start_step=10, ramp_steps=4)
    rising = [terms.weight_at(step) for step in (9, 10, 11, 12, 13, 14, 1000)]
    assert rising == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [AdversarialTerms(weight=0.8, start_step=10).weight_at(step) for step in (9, 10)] == [0, 0.8]
