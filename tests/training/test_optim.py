import pytest
import torch
from torch import nn

from latentae.training.optim import LearningRate, adamw


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


def test_a_schedule_that_begins_late():
    rate = LearningRate(1.0, schedule="cosine", warmup_steps=2, first_step=10, last_step=22)
    assert rate.at(10) == 0.5
    assert rate.at(12) == 1.0
    assert rate.at(17) == pytest.approx(0.5)
    assert rate.at(22) == pytest.approx(0.0)


def test_adamw_leaves_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = adamw(model.parameters(), learning_rate=0.1, betas=(0.5, 0.9), weight_decay=0.0, epsilon=1e-8)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 2
    assert group["betas"] == (0.5, 0.9)
    model(torch.ones(1, 2)).sum().backward()
    before = model[0].bias.clone()
    optimizer.step()
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    torch.testing.assert_close((before - model[0].bias).abs(), torch.full((2,), 0.1))
