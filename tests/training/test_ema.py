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
    assert ema.model.count.item() == 1
    ema.update(model)  # decay min(0.15, 2/11)
    assert ema.model.weight[0].item() == pytest.approx(1 - 0.1 * 0.15)


def test_decay_zero_follows_at_once():
    model = Parts()
    ema = EMA(model, decay=0.0)
    model.weight.data.fill_(3)
    ema.update(model)
    assert torch.equal(ema.model.weight, model.weight)


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
    second.load_state_dict(
        {name: torch.as_tensor(value).clone() for name, value in first.state_dict().items()}
    )
    for ema in (first, second):
        ema.update(model)
    assert torch.equal(first.model.weight, second.model.weight)
    assert second.updates == 4
