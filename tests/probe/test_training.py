import copy

import pytest
import torch

from latentae.probe.denoiser import NULL_LABEL, DenoiserSize, FlowValidation, LatentBatch, build_denoiser
from latentae.probe.training import DenoiserTraining, LatentBatches, TrainingSettings, collect


class Numbered:
    """Latents [2, 1, 1] of their own number, plus a tenth of the epoch."""

    def __init__(self, count, labelled=True):
        self.count, self.labelled, self.epoch = count, labelled, None

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        sample = {"latents": torch.full((2, 1, 1), index + (self.epoch or 0) / 10)}
        return sample | ({"label": index % 3} if self.labelled else {})

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_each_image_once_an_epoch_in_another_order():
    batches = LatentBatches(Numbered(7), 3, seed=0)
    first = torch.cat([batches(step).latents[:, 0, 0, 0] for step in (0, 1)])
    second = torch.cat([batches(step).latents[:, 0, 0, 0] for step in (2, 3)])
    assert len(set(first.tolist())) == 6
    assert set(first.tolist()) <= set(range(7))
    assert {round(value % 1, 1) for value in second.tolist()} == {0.1}
    assert [int(value) for value in second] != first.int().tolist()


def test_any_step_first():
    whole = LatentBatches(Numbered(7), 3, seed=0)
    expected = [whole(step).latents for step in range(5)]
    assert torch.equal(LatentBatches(Numbered(7), 3, seed=0)(4).latents, expected[4])
    assert not torch.equal(LatentBatches(Numbered(7), 3, seed=1)(4).latents, expected[4])


def test_labels_and_offset():
    batch = collect(Numbered(7), [4, 2], torch.tensor([0.5, -1.0]))
    assert batch.latents.flatten().tolist() == [4.5, 3.0, 2.5, 1.0]
    assert batch.labels.tolist() == [1, 2]
    assert collect(Numbered(7, labelled=False), [4]).labels.tolist() == [0]


def test_fewer_images_than_a_batch():
    with pytest.raises(ValueError, match="2 training images, fewer than a batch of 3"):
        LatentBatches(Numbered(2), 3, seed=0)


CPU = torch.device("cpu")


def batches(step):
    """Latents that are all of one value, a class's own."""
    labels = torch.arange(8) % 2
    return LatentBatch((labels * 2.0 - 1)[:, None, None, None].expand(8, 2, 4, 4).clone(), labels)


def training(steps=12, **changes):
    settings = TrainingSettings(steps, **{"points": 3, "ema_decay": 0.9, **changes})
    validation = FlowValidation(batches(0), torch.ones(2), seed=0)
    return DenoiserTraining(
        build_denoiser((2, 4, 4), 2, DenoiserSize(32, 1), 0), batches, validation, settings, CPU, True
    )


def test_first_loss_is_that_of_predicting_nothing():
    fresh = training()
    draws = []
    fresh.denoiser.register_forward_hook(
        lambda module, inputs, kwargs, output: draws.append((inputs[0], kwargs)), with_kwargs=True
    )
    loss = fresh.loss(3)
    noisy, kwargs = draws[0]
    times = (kwargs["timestep"] / 1000)[:, None, None, None]
    latents = batches(3).latents
    noise = (noisy - (1 - times) * latents) / times
    assert loss.item() == pytest.approx((noise - latents).square().mean().item(), rel=1e-4)
    assert fresh.loss(3) == loss
    assert fresh.loss(4) != loss


def test_labels_are_dropped_as_often_as_asked():
    seen = []
    fresh = training(label_dropout=0.25)
    fresh.denoiser.register_forward_hook(
        lambda module, inputs, kwargs, output: seen.append(kwargs["class_labels"]), with_kwargs=True
    )
    with torch.no_grad():
        for step in range(100):
            fresh.loss(step)
    assert (torch.stack(seen) == NULL_LABEL).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_measured_as_often_as_asked_and_better_in_the_end():
    run = training(120, learning_rate=3e-3)
    run.advance(200)
    assert run.is_done
    assert [point.step for point in run.curve] == [40, 80, 120]
    assert run.curve[-1].validation_loss < 0.6 * run.curve[0].validation_loss
    assert run.schedule.get_last_lr() == [0.0]


def test_stopped_and_continued_is_the_same():
    whole = training()
    whole.advance(12)
    first = training()
    first.advance(5)
    state = copy.deepcopy(first.state_dict())
    second = training()
    second.load_state_dict(state)
    second.advance(100)
    assert [p.validation_loss for p in second.curve] == [p.validation_loss for p in whole.curve]
    assert [p.training_loss for p in second.curve] == [p.training_loss for p in whole.curve]
    for run in (whole, second):
        run.use_average()
    for one, other in zip(whole.denoiser.parameters(), second.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)


def test_measuring_changes_nothing():
    often, seldom = training(points=12), training(points=1)
    often.advance(12)
    seldom.advance(12)
    for one, other in zip(often.denoiser.parameters(), seldom.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_average_is_that_of_the_weights():
    run = training(3, ema_decay=0.9)
    name = "proj_out_2.weight"
    average = run.denoiser.state_dict()[name].clone()
    for number in range(1, 4):
        run.advance(1)
        decay = min(0.9, number / (9 + number)) if number > 1 else 0.0
        average = average.lerp(run.denoiser.state_dict()[name], 1 - decay)
    run.use_average()
    assert torch.allclose(run.denoiser.state_dict()[name], average, rtol=1e-5, atol=1e-8)


def test_a_loss_that_is_not_finite_ends_the_run():
    run = training(3)
    run.batches = lambda step: LatentBatch(torch.full((8, 2, 4, 4), torch.inf), torch.zeros(8).long())
    with pytest.raises(ValueError, match="choose a lower --learning-rate, and another --out"):
        run.advance(1)
