"""What the discriminator learns, against its plain formulation in float64."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.peers import Extras, textbook_step
from latentae.discriminators import DiffAugment
from latentae.losses.adversarial import ADVERSARIAL_LOSSES, R1, AdversarialTerms, LeCAM
from latentae.models.lean import make_lean
from latentae.training.adversary import GRADIENT_LOSSES, Adversary, AdversaryWatch, CapturedCall
from latentae.training.guard import Guard
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from latentae.training.update import Learner, LearningRate, update
from tests.models.conftest import make
from tests.training.small_networks import assert_same_gradients, gradients, small_networks

HEALTHY = {
    "accuracy_real": 0.8,
    "accuracy_fake": 0.7,
    "logits_real": 0.5,
    "logits_fake": -0.4,
    "logit_gap": 0.9,
    "generator": 0.4,
}
WON = HEALTHY | {"accuracy_real": 1.0, "accuracy_fake": 0.99, "logits_real": 6.0, "logit_gap": 11.0}
# Both sides' logits lie a hair above the boundary.
EVEN = HEALTHY | {"accuracy_real": 1.0, "accuracy_fake": 0.0, "logits_real": 0.001, "logit_gap": 1e-4}
POLICY = ["color", "translation", "cutout"]


def make_images(batch=2):
    return torch.rand(batch, 3, 16, 16, dtype=torch.float64) * 2 - 1


def augmented(policy, randomness, purpose):
    """The textbook draws for itself: all it shares with the step is where the numbers come from."""
    augment = DiffAugment(policy)
    return lambda images: augment(images, randomness.uniform(purpose, len(images), augment.num_draws))


def lecam_at(weight, real, fake):
    lecam = LeCAM(weight).double()
    lecam.observe(torch.tensor(real), torch.tensor(fake))
    lecam.commit()
    return lecam


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("extra", ["augmentation", "lecam", "r1", "all", "all before the autoencoder"])
def test_gradients_equal_the_textbook(extra, accumulation, reuse):
    autoencoder, discriminator, objective = small_networks()
    every, start = extra.startswith("all"), 10 if "before" in extra else 0
    terms = AdversarialTerms(
        ADVERSARIAL_LOSSES["non_saturating"], weight=0.7, start_step=start, discriminator_warmup_steps=10
    )
    adversary = Adversary(
        discriminator,
        terms,
        augmentation=DiffAugment(POLICY) if every or extra == "augmentation" else None,
        lecam=lecam_at(0.3, 0.2, -0.1) if every or extra == "lecam" else None,
        r1=R1(weight=4.0, every=2) if every or extra == "r1" else None,
        reuse_forward=reuse,
    )
    micro_batches = [make_images() for _ in range(accumulation)]
    expected = copy.deepcopy((autoencoder, discriminator))
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, adversary)
    step.backward = lambda loss: (loss / accumulation).backward()
    for number, images in enumerate(micro_batches):
        randomness = StepRandomness(7, 4, number)
        extras = Extras()
        if adversary.augmentation is not None:
            extras.augment_images = augmented(POLICY, randomness, "augmented images")
            extras.augment_reconstruction = augmented(POLICY, randomness, "augmented reconstruction")
        if adversary.lecam is not None:
            extras.lecam = (0.3, *adversary.lecam.averages.tolist())
        if adversary.r1 is not None:
            extras.r1 = 8.0  # γ times k: the fifth update is one of every second's
        textbook_step(*expected, objective, terms, images, 4, accumulation, extras)
        step(images, randomness)
    assert_same_gradients(gradients(autoencoder, discriminator), gradients(*expected))


def test_the_penalty_is_lazy():
    autoencoder, discriminator, objective = small_networks()
    terms = AdversarialTerms(start_step=2, discriminator_warmup_steps=1, update_every=2)
    adversary = Adversary(discriminator, terms, r1=R1(1.0, every=3))
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, adversary)
    images = make_images()
    losses = [step(images, StepRandomness(0, number)).losses for number in range(14)]
    assert [number for number, line in enumerate(losses) if "discriminator" in line] == [
        1,
        3,
        5,
        7,
        9,
        11,
        13,
    ]
    assert [number for number, line in enumerate(losses) if "r1" in line] == [1, 7, 13]


def test_logits_are_counted_by_side():
    class FirstChannel(nn.Module):
        def forward(self, images):
            return images[:, :1]

    images = torch.tensor([0.9, 0.6, 0.4, -0.2]).view(1, 1, 2, 2)
    reconstruction = torch.tensor([0.7, 0.3, -0.1, -0.5]).view(1, 1, 2, 2)
    share = {}
    for name, loss in ADVERSARIAL_LOSSES.items():
        adversary = Adversary(FirstChannel(), AdversarialTerms(loss))
        _, numbers = adversary.discriminator_loss(images, reconstruction, None, StepRandomness(0, 0))
        share[name] = (numbers["accuracy_real"].item(), numbers["accuracy_fake"].item())
    assert share == {"hinge": (0.75, 0.5), "non_saturating": (0.75, 0.5), "least_squares": (0.5, 0.75)}
    assert numbers["logits_real"].item() == pytest.approx(0.425)
    assert numbers["logits_fake"].item() == pytest.approx(0.1)
    assert numbers["logit_gap"].item() == pytest.approx(0.325)


def test_lecam_follows_what_the_steps_have_seen():
    autoencoder, discriminator, objective = small_networks()
    adversary = Adversary(discriminator, lecam=LeCAM(0.3, decay=0.5).double())
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, adversary)

    def seen(number, accepted):
        losses = [step(make_images(), StepRandomness(0, number)).losses for _ in range(2)]
        adversary.lecam.commit(torch.tensor(accepted))
        return torch.stack(
            [sum(line[f"logits_{side}"] for line in losses) / 2 for side in ("real", "fake")]
        ), losses

    first, losses = seen(0, True)
    assert [line["lecam"].item() for line in losses] == [0.0, 0.0]
    torch.testing.assert_close(adversary.lecam.averages, first)
    seen(1, False)
    torch.testing.assert_close(adversary.lecam.averages, first)
    third, losses = seen(2, True)
    torch.testing.assert_close(adversary.lecam.averages, (first + third) / 2)
    assert all(line["lecam"] > 0 for line in losses)


def test_the_state_is_lecam_s():
    discriminator = small_networks()[1]
    with_lecam = Adversary(discriminator, lecam=lecam_at(0.1, 2.0, -1.0))
    resumed = Adversary(discriminator, lecam=LeCAM(0.1).double())
    resumed.load_state_dict(with_lecam.state_dict())
    assert resumed.lecam.averages.tolist() == [2.0, -1.0]
    without = Adversary(discriminator)
    assert without.state_dict() == {}
    without.load_state_dict(with_lecam.state_dict())
    fresh = Adversary(discriminator, lecam=LeCAM(0.1))
    fresh.load_state_dict(without.state_dict())
    assert not fresh.lecam.started


def test_both_passes_of_a_micro_batch_see_the_same_augmentation():
    discriminator = small_networks(norm="spectral")[1]
    seen = []
    discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    adversary = Adversary(discriminator, augmentation=DiffAugment(POLICY), reuse_forward=False)
    images, reconstruction = make_images(4), make_images(4)
    fake = adversary.logits(reconstruction, StepRandomness(0, 5))
    adversary.discriminator_loss(images, reconstruction, fake, StepRandomness(0, 5))
    first, second, real = seen
    assert torch.equal(first, second)
    unlike = DiffAugment(POLICY)(images, StepRandomness(0, 5).uniform("augmented reconstruction", 4, 7))
    assert not torch.equal(real, unlike)  # images and reconstructions have draws of their own
    adversary.logits(reconstruction, StepRandomness(0, 6))
    assert not torch.equal(seen[-1], first)


def test_ranks_draw_what_one_process_draws():
    adversary = Adversary(nn.Identity(), augmentation=DiffAugment(POLICY))
    images = make_images(4)
    whole = adversary.logits(images, StepRandomness(0, 5))
    parts = [
        adversary.logits(images[2 * rank : 2 * rank + 2], StepRandomness(0, 5, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_under_a_gradient_scaler_and_autocast():
    """Half precision changes the discriminator's gradients little, its penalty included."""
    torch.manual_seed(0)
    discriminator = small_networks()[1].float()
    images, reconstruction = make_images().float(), make_images().float()
    adversary = Adversary(discriminator, lecam=lecam_at(0.1, 0.0, 0.0).float(), r1=R1(0.5, every=1))
    loss, exact = adversary.discriminator_loss(images, reconstruction, None, StepRandomness(0, 0))
    loss.backward()
    expected = gradients(discriminator)
    discriminator.zero_grad()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain = discriminator.forward
    discriminator.forward = lambda x: torch.autocast("cpu", torch.float16)(plain)(x).float()
    loss, numbers = adversary.discriminator_loss(images, reconstruction, None, StepRandomness(0, 0))
    scaler.scale(loss).backward()
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    scaler.unscale_(optimizer)
    assert numbers["r1"].dtype == torch.float32
    assert numbers["r1"].item() == pytest.approx(exact["r1"].item(), rel=0.02)
    for ours, theirs in zip(gradients(discriminator), expected, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm() + 1e-6


def test_a_penalty_that_overflows_is_the_scaler_s_business():
    """The scale falls until the penalty fits, and no update is called a fault."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.SiLU(), nn.Conv2d(4, 1, 1)).float()
    plain = net.forward
    net.forward = lambda x: torch.autocast("cpu", torch.float16)(plain)(x).float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    adversary = Adversary(net, r1=R1(1.0, every=1), loss_scale=scaler.scale)
    rate = LearningRate(1e-3, last_step=10)
    learner = Learner("discriminator", net, torch.optim.SGD(net.parameters(), lr=1.0), rate)
    guard, accepted = Guard(lambda items: items, GRADIENT_LOSSES), []
    images, reconstruction = make_images().float(), make_images().float()
    for number in range(40):
        loss, numbers = adversary.discriminator_loss(images, reconstruction, None, StepRandomness(0, number))
        scaler.scale(loss).backward()
        guard.watch(numbers, ["a.png"])
        accept = partial(guard.accept, number + 1)
        accepted.append(
            (update([learner], number, scaler, None, accept).accepted.item(), numbers["r1"].isfinite())
        )
    assert accepted[0] == (False, False)
    assert accepted[-1] == (True, True)
    assert guard.report() == []
    assert guard.skipped == 0


# The captured call


def test_the_first_call_is_remembered():
    module = nn.Linear(2, 2)
    first, second = torch.rand(1, 2, requires_grad=True), torch.rand(1, 2)
    with CapturedCall(module) as call:
        output = module(first)
        module(second)
    module(second)
    assert torch.equal(call.inputs, first)
    assert not call.inputs.requires_grad
    assert call.output is output
    assert not module._forward_hooks


def test_it_can_be_entered_again():
    module = nn.Linear(2, 2)
    call = CapturedCall(module)
    for inputs in torch.rand(2, 1, 2):
        with call:
            module(inputs)
        assert torch.equal(call.inputs, inputs)


def test_a_lean_layer_tells_what_it_convolved():
    model, images = make(), torch.rand(1, 3, 8, 8) * 2 - 1
    with CapturedCall(model.decoder.conv_out) as stock:
        model(images)
    expected = stock.inputs
    make_lean(model)
    with CapturedCall(model.decoder.conv_out) as found:
        model(images)
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-5)
    assert not found.inputs.requires_grad


# Warnings


def said(lines, patience=3):
    watch = AdversaryWatch(patience)
    sentences = [watch.see(line) for line in lines]
    return [number for number, sentence in enumerate(sentences) if sentence is not None], sentences


def test_no_warning_of_a_healthy_discriminator():
    assert said([HEALTHY, WON, WON, HEALTHY] * 5)[0] == []


def test_a_discriminator_that_has_won_is_named_once():
    numbers, sentences = said([HEALTHY, *[WON] * 20])
    assert numbers == [3]
    assert (
        "has won: over the last 3 log lines it was right about 100.0% of the images and 99.0%" in sentences[3]
    )
    assert "logit gap 11" in sentences[3]
    assert "discriminator.update_every=2" in sentences[3]


def test_a_discriminator_that_cannot_decide_is_named_once():
    numbers, sentences = said([EVEN] * 20)
    assert numbers == [2]
    assert "cannot tell images from reconstructions" in sentences[2]
    assert "last 3 log lines" in sentences[2]
    assert "0.001" in sentences[2]


@pytest.mark.parametrize(
    "change",
    [{"logit_gap": 0.5}, {"accuracy_fake": 0.3}, {"logits_real": 0.3}],
    ids=lambda change: str(change),
)
def test_one_line_that_differs_begins_the_count_anew(change):
    assert said([EVEN, EVEN, EVEN | change, EVEN, EVEN, EVEN])[0] == [5]


def test_it_speaks_again_after_as_many_lines_without():
    assert said([*[WON] * 3, *[HEALTHY] * 2, *[WON] * 3])[0] == [2]
    assert said([*[WON] * 3, *[HEALTHY] * 3, *[WON] * 3])[0] == [2, 8]
    assert said([*[WON] * 3, *[EVEN] * 3])[0] == [2, 5]


def test_winning_in_the_warm_up_is_no_finding():
    warm_up = {name: value for name, value in WON.items() if name != "generator"}
    assert said([*[warm_up] * 10, *[WON] * 3])[0] == [12]


def test_lines_in_which_it_did_not_learn_do_not_count():
    assert said([{"loss": 1.0}, WON, {"loss": 1.0}, WON, WON])[0] == [4]
