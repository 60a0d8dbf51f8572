import pytest
import torch
from torch import nn

from latentae.training.ema import EMA


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)  # as the codebook of an EMA quantizer
        self.register_buffer("average", torch.zeros(1))
        self.register_buffer("exact", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))


def test_updates_by_hand():
    model = Parts()
    ema = EMA(model, decay=0.15)
    for value in model.state_dict().values():
        value.fill_(1)
    ema.update(model)  # decay min(0.15, 1/10)
    assert ema.model.weight.tolist() == pytest.approx([0.9, 0.9])
    assert ema.model.frozen.item() == pytest.approx(0.9)
    assert ema.model.average.item() == pytest.approx(0.9)
    assert ema.model.exact.item() == pytest.approx(0.9)
    assert ema.model.count.item() == 1
    ema.update(model)  # decay min(0.15, 2/11)
    assert ema.model.weight[0].item() == pytest.approx(1 - 0.1 * 0.15)


def test_decay_zero_follows_at_once():
    model = Parts()
    ema = EMA(model, decay=0.0)
    model.weight.data.fill_(3)
    ema.update(model)
    assert torch.equal(ema.model.weight, model.weight)


@pytest.mark.parametrize("refused", [False, torch.tensor(False)])
def test_a_step_that_was_not_made_changes_nothing(refused):
    model = Parts()
    ema, undisturbed = EMA(model, decay=0.5), EMA(model, decay=0.5)
    model.weight.data.copy_(torch.tensor([1.0, 0.1]))
    model.count.fill_(7)
    for other in (ema, undisturbed):
        other.update(model, torch.tensor(True))
    model.count.fill_(8)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    ema.update(model, refused)
    for name, value in ema.state_dict().items():
        assert torch.equal(value, before[name]), name
    for other in (ema, undisturbed):
        other.update(model)
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, ema.state_dict()[name]), name


def test_a_high_decay_keeps_its_digits():
    """1 − 0.99999 in float32 is 1.0014e-5."""
    model = Parts()
    ema = EMA(model, decay=0.99999)
    ema.updates.fill_(10**8)
    model.weight.data.fill_(1)
    ema.update(model)
    assert ema.model.weight[0].item() == pytest.approx(1e-5, rel=1e-6)


def test_the_copy_is_apart_and_takes_no_gradient():
    model = Parts()
    ema = EMA(model, decay=0.9)
    model.weight.data.fill_(5)
    assert ema.model.weight.tolist() == [0.0, 0.0]
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training


def test_state_round_trip():
    model = Parts()
    first, second = EMA(model, 0.9), EMA(model, 0.9)
    model.weight.data.fill_(1)
    for _ in range(3):
        first.update(model)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for ema in (first, second):
        ema.update(model)
    assert torch.equal(first.model.weight, second.model.weight)
    assert second.updates.item() == 4


def test_what_is_frozen_keeps_its_bits():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1))
    for layer in model:
        layer.weight.data.copy_(torch.tensor([[-0.0, 0.1]]))
    ema = EMA(model, 0.9, frozen=["0"])
    ema.update(model)
    assert ema.model[0].weight.signbit().tolist() == [[True, False]]
    assert torch.equal(ema.model[0].weight.view(torch.int32), model[0].weight.view(torch.int32))
    model[1].weight.data.fill_(1)
    ema.update(model)  # the other part is averaged as before
    assert ema.model[1].weight[0, 1].item() == pytest.approx(0.1 + 0.9 * 9 / 11)
