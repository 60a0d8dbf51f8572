import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentae.training.guard import Guard
from latentae.training.update import Learner, LearningRate, adamw, adamw8bit, keep_settings, update

ADAM = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.0, "eps": 1e-8}


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


def test_adamw_leaves_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = adamw(model.parameters(), **ADAM)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 2
    assert group["betas"] == (0.5, 0.9)
    model(torch.ones(1, 2)).sum().backward()
    before = model[0].bias.clone()
    optimizer.step()
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    torch.testing.assert_close((before - model[0].bias).abs(), torch.full((2,), 0.1))


def test_adamw_skips_a_step_under_a_flag():
    """What the guard builds on: torch's fused kernel leaves weights and averages alone, NaN or not."""
    model = nn.Linear(2, 1)
    optimizer = adamw(model.parameters(), **ADAM)
    for value, flag in ((1.0, 0.0), (float("nan"), 1.0)):
        model.weight.grad = torch.full_like(model.weight, value)
        before = model.weight.clone(), *(x.clone() for x in optimizer.state.get(model.weight, {}).values())
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(flag), None
        optimizer.step()
    after = model.weight, *optimizer.state[model.weight].values()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert optimizer.state[model.weight]["step"] == 1


class FakeAdamW8bit(torch.optim.SGD):
    def __init__(self, params, lr, betas, eps, weight_decay):
        super().__init__(params, lr=lr)
        self.given = (lr, betas, eps, weight_decay)


def test_adamw8bit_is_that_of_bitsandbytes(monkeypatch):
    library = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=FakeAdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = adamw8bit(model.parameters(), **ADAM)
    assert isinstance(optimizer, FakeAdamW8bit)
    assert optimizer.given == (0.1, (0.5, 0.9), 1e-8, 0.0)
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_adamw8bit_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # which makes an import fail
    with pytest.raises(ValueError, match=r"optimizer\.type is adamw8bit.*pip install bitsandbytes"):
        adamw8bit(nn.Linear(1, 1).parameters(), **ADAM)


def test_loading_keeps_the_settings_of_the_config():
    """Averages and counts come from the state, the rest from the config, the kernel's device too."""
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    old = adamw(models[0].parameters(), **ADAM)
    models[0](torch.ones(1, 2)).sum().backward()
    old.step()
    new = adamw(models[1].parameters(), lr=0.3, betas=(0.1, 0.2), weight_decay=0.5, eps=1e-3)
    new.add_param_group({"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "lr_scale": 7.0})
    state = old.state_dict()
    state["param_groups"].append({**state["param_groups"][0], "params": [2], "fused": False, "lr_scale": 9.0})
    before = [{key: value for key, value in group.items() if key != "params"} for group in new.param_groups]
    with keep_settings([new]):
        new.load_state_dict(state)
        assert new.param_groups[0]["betas"] == (0.5, 0.9)
    after = [{key: value for key, value in group.items() if key != "params"} for group in new.param_groups]
    assert after == before
    own, theirs = new.state[models[1].weight], old.state[models[0].weight]
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
