import pytest
import torch
from torch import nn

from latentae.training.guard import Guard
from latentae.training.update import Learner, LearningRate, update


def accept(norms, loss_scale):
    return torch.tensor(True)


def refuse(norms, loss_scale):
    return torch.tensor(False)


def learner(name="net"):
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=123.0)
    return Learner(name, module, optimizer, LearningRate(0.5, last_step=10))


def test_clips_steps_and_clears():
    net = learner()
    net.module.weight.grad = torch.tensor([[4.0]])
    numbers = update([net], 0, None, 1.0, accept).numbers
    assert numbers["net_gradient_norm"].item() == 4.0
    assert numbers["net_learning_rate"].item() == 0.5
    assert net.module.weight.item() == pytest.approx(1.0 - 0.5 * 1.0, rel=1e-5)
    assert net.module.weight.grad is None


def test_without_clipping():
    net = learner()
    net.module.weight.grad = torch.tensor([[4.0]])
    update([net], 0, None, None, accept)
    assert net.module.weight.item() == pytest.approx(1.0 - 0.5 * 4.0)


def test_a_network_waits_for_its_turn():
    net = learner()
    net.learns = lambda step: step == 3
    net.module.weight.grad = torch.tensor([[4.0]])
    assert update([net], 2, None, None, accept).numbers == {}
    assert net.module.weight.item() == 1.0
    assert set(update([net], 3, None, None, accept).numbers) == {"net_gradient_norm", "net_learning_rate"}


def test_one_scale_for_all_learners():
    """A scale that grows between two learners would leave the second one's gradients twice too large."""
    nets = [learner("first"), learner("second")]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_factor=2.0, growth_interval=1)
    for net in nets:
        scaler.scale(net.module.weight.sum()).backward()
    numbers = update(nets, 0, scaler, None, accept).numbers
    assert numbers["first_gradient_norm"].item() == numbers["second_gradient_norm"].item() == 1.0
    assert nets[0].module.weight.item() == nets[1].module.weight.item() == 0.5
    assert scaler.get_scale() == 16.0


def test_a_refused_update_changes_nothing_and_clears():
    net = learner()
    net.module.weight.grad = torch.tensor([[float("nan")]])
    done = update([net], 0, None, 1.0, refuse)
    assert not done.accepted
    assert net.module.weight.item() == 1.0
    assert net.module.weight.grad is None


def test_an_overflow_lowers_the_scale_for_all():
    nets = [learner("first"), learner("second")]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, backoff_factor=0.5)
    guard = Guard(lambda items: items)
    for net, factor in zip(nets, (1.0, float("inf")), strict=True):
        scaler.scale((net.module.weight * factor).sum()).backward()
    guard.watch({"loss": torch.tensor(1.0)}, ["a.png"])
    update(nets, 0, scaler, None, lambda norms, scale: guard.accept(1, norms, scale))
    assert [net.module.weight.item() for net in nets] == [1.0, 1.0]
    assert scaler.get_scale() == 4.0
    assert guard.report() == []


def test_constant_after_a_linear_rise():
    rate = LearningRate(2.0, warmup_steps=4, last_step=100)
    assert [rate.at(step) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_cosine_by_hand():
    rate = LearningRate(1.0, schedule="cosine", final_scale=0.2, last_step=100)
    assert rate.at(0) == 1.0
    assert rate.at(50) == pytest.approx(0.2 + 0.8 * 0.5)
    assert rate.at(25) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + 2**-0.5))
    assert rate.at(100) == pytest.approx(0.2)
    assert rate.at(500) == pytest.approx(0.2)


def test_warmup_stable_decay_by_hand():
    """Ten steps of rise, a hundred constant but for the last quarter, which falls as 1 − √."""
    rate = LearningRate(
        2.0, schedule="wsd", warmup_steps=10, decay_share=0.25, final_scale=0.1, last_step=110
    )
    assert [rate.at(step) for step in (4, 9, 10, 60, 85)] == [1.0, 2.0, 2.0, 2.0, 2.0]
    assert rate.at(91) == pytest.approx(2.0 * (0.1 + 0.9 * (1 - (6 / 25) ** 0.5)))
    assert rate.at(110) == rate.at(300) == pytest.approx(0.2)


def test_before_its_decay_the_schedule_knows_no_end():
    short, long = (LearningRate(1.0, schedule="wsd", decay_share=0.1, last_step=n) for n in (100, 1000))
    assert [short.at(step) for step in range(91)] == [long.at(step) for step in range(91)]


@pytest.mark.parametrize(("share", "before"), [(0.0, 1.0), (1.0, 1 - 0.99**0.5)])
def test_a_decay_over_nothing_and_over_everything(share, before):
    rate = LearningRate(1.0, schedule="wsd", decay_share=share, last_step=100)
    assert rate.at(99) == pytest.approx(before)
    assert rate.at(100) == 0.0


def test_a_schedule_that_begins_late():
    rate = LearningRate(1.0, schedule="cosine", warmup_steps=2, first_step=10, last_step=22)
    assert rate.at(10) == 0.5
    assert rate.at(12) == 1.0
    assert rate.at(17) == pytest.approx(0.5)
    assert rate.at(22) == pytest.approx(0.0)
