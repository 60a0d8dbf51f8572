import pytest
import torch
from torch import nn

from latentae.training.guard import Guard
from latentae.training.learner import Learner, update
from latentae.training.optim import LearningRate


def accept(norms, loss_scale):
    return torch.tensor(True)


def refuse(norms, loss_scale):
    return torch.tensor(False)


def learner(name="net", first_step=0):
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=123.0)
    return Learner(name, module, optimizer, LearningRate(0.5, last_step=10), first_step)


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


def test_a_learner_waits_for_its_first_step():
    net = learner(first_step=3)
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


def test_a_learner_takes_its_turn():
    net = learner(first_step=1)
    net.every = 3
    assert [step for step in range(8) if net.learns(step)] == [1, 4, 7]


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
    update(nets, 0, scaler, None, lambda norms, scale: guard.judge(1, norms, scale))
    assert [net.module.weight.item() for net in nets] == [1.0, 1.0]
    assert scaler.get_scale() == 4.0
    assert guard.report() == []
