import pytest
import torch
from torch import nn

from latentae.training.guard import Guard, SkippedStep, diagnose

NAN = torch.tensor(float("nan"))
ONE = torch.tensor(1.0)


def alone(items):
    return items


def attempt(guard, step, loss=ONE, norm=ONE, scale=None, names=("a.png",)):
    guard.watch({"loss": loss, "perceptual": ONE}, list(names))
    return bool(guard.accept(step, {"net_gradient_norm": norm}, scale))


def test_names_the_step_the_cause_and_the_images():
    guard = Guard(alone)
    assert attempt(guard, 1)
    assert not attempt(guard, 2, loss=NAN, names=["b.png", "c.png"])
    assert not attempt(guard, 3, norm=torch.tensor(float("inf")))
    skipped = guard.report()
    assert [(s.step, s.causes, s.names) for s in skipped] == [
        (2, ["loss"], ["b.png", "c.png"]),
        (3, ["net_gradient_norm"], ["a.png"]),
    ]
    assert str(skipped[0]) == "step 2 skipped: loss not finite; its images: b.png, c.png"
    assert guard.skipped == 2
    assert guard.report() == []


def test_one_micro_batch_is_enough():
    guard = Guard(alone)
    guard.watch({"loss": NAN}, ["a"])
    guard.watch({"loss": ONE}, ["b"])
    assert not guard.accept(1, {})
    assert guard.report()[0].names == ["a", "b"]


def test_counts_a_row_across_reports():
    guard = Guard(alone)
    for step in (1, 2):
        attempt(guard, step, loss=NAN)
    guard.report()
    attempt(guard, 3, loss=NAN)
    attempt(guard, 4)
    guard.report()
    assert (guard.longest, guard.consecutive, guard.skipped) == (3, 0, 3)
    attempt(guard, 5, loss=NAN)
    guard.report()
    assert (guard.longest, guard.consecutive) == (1, 1)


def test_a_scaler_overflow_is_not_made_and_not_counted():
    guard = Guard(alone)
    assert not attempt(guard, 1, norm=NAN, scale=torch.tensor(65536.0))
    assert guard.report() == []
    assert guard.skipped == 0


def penalised(guard, scale, loss=ONE, penalty=ONE):
    guard.watch({"loss": loss, "r1": penalty}, ["a.png"])
    return bool(guard.accept(1, {"net_gradient_norm": NAN}, scale))


@pytest.mark.parametrize(
    ("gradient_losses", "scale", "loss", "causes"),
    [
        (("r1",), torch.tensor(65536.0), ONE, None),
        (("r1",), torch.tensor(65536.0), NAN, ["loss", "r1", "net_gradient_norm"]),
        (("r1",), torch.tensor(1.0), ONE, ["r1", "net_gradient_norm"]),
        (("r1",), None, ONE, ["r1", "net_gradient_norm"]),
        ((), torch.tensor(65536.0), ONE, ["r1", "net_gradient_norm"]),
    ],
)
def test_a_loss_made_of_gradients_overflows_as_they_do(gradient_losses, scale, loss, causes):
    guard = Guard(alone, gradient_losses)
    assert not penalised(guard, scale, loss=loss, penalty=NAN)
    assert [skipped.causes for skipped in guard.report()] == ([] if causes is None else [causes])
    assert guard.skipped == guard.consecutive == (causes is not None)


@pytest.mark.parametrize(("loss", "scale"), [(NAN, 65536.0), (ONE, 1.0)])
def test_what_no_scale_explains_counts(loss, scale):
    guard = Guard(alone)
    attempt(guard, 1, loss=loss, norm=NAN, scale=torch.tensor(scale))
    assert len(guard.report()) == 1


def test_only_the_ranks_at_fault_are_named(monkeypatch):
    # The second of three ranks; the others' losses are finite.
    monkeypatch.setattr("latentae.training.guard.distributed.world_size", lambda: 3)
    monkeypatch.setattr("latentae.training.guard.distributed.all_reduce_sum", lambda tensor: tensor)

    def three_ranks(own):
        return [(False, ["fine.png"]), *own, (False, ["good.png"])]

    guard = Guard(three_ranks)
    attempt(guard, 1, loss=NAN, names=["bad.png"])
    assert guard.report()[0].names == ["bad.png"]
    attempt(guard, 2, norm=NAN, names=["own.png"])
    assert guard.report()[0].names == ["fine.png", "own.png", "good.png"]


def test_a_resumed_run_goes_on_counting():
    guard = Guard(alone)
    attempt(guard, 1, loss=NAN)
    guard.report()
    again = Guard(alone)
    again.load_state_dict(guard.state_dict())
    attempt(again, 2, loss=NAN)
    again.report()
    assert (again.consecutive, again.longest, again.skipped) == (2, 2, 2)


def test_a_state_counts_what_was_not_reported_yet():
    """Such as that of a checkpoint which a signal asks for between two log lines."""
    guard = Guard(alone)
    guard.load_state_dict({"skipped": 3, "consecutive": 2})
    attempt(guard, 4, loss=NAN)
    assert guard.state_dict() == {"skipped": 4, "consecutive": 3}
    attempt(guard, 5)
    attempt(guard, 6, loss=NAN)
    assert guard.state_dict() == {"skipped": 5, "consecutive": 1}
    assert [step.step for step in guard.report()] == [4, 6]
    assert guard.state_dict() == {"skipped": 5, "consecutive": 1}


def test_a_row_that_ended_the_run_ends_no_run_that_continues_well():
    guard = Guard(alone)
    guard.load_state_dict({"skipped": 10, "consecutive": 10})
    attempt(guard, 11)
    guard.report()
    assert (guard.longest, guard.consecutive, guard.skipped) == (0, 0, 10)


def test_many_images_are_cut_short():
    guard = Guard(alone)
    attempt(guard, 1, loss=NAN, names=[f"{i}.png" for i in range(20)])
    assert str(guard.report()[0]).endswith("7.png and 12 more")


def test_names_come_out_in_one_printable_line():
    text = str(SkippedStep(3, ["loss"], ["caf\udce9.png", "new\nline.png", "x" * 1000]))
    assert r"caf\udce9.png, new\nline.png, xxx" in text
    assert text.isprintable()
    assert len(text) < 500


class Overflow(nn.Module):
    def forward(self, x):
        return x * float("inf")


@pytest.fixture
def network():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(net[0].weight, 3.0)
    return net


def test_the_first_layer_with_an_output_that_is_not_finite(network):
    network.insert(2, Overflow())
    found = diagnose(network, torch.ones(1, 2))
    assert found.layer == "2"
    assert found.weights == []
    assert [name for name, _ in found.largest] == ["0", "1"]
    assert "not finite from 2 on" in str(found)


def test_a_weight(network):
    network[2].bias.data[0] = float("nan")
    found = diagnose(network, torch.ones(1, 2))
    assert found.weights == ["2.bias"]
    assert found.layer == "2"


def test_nothing_is_wrong(network):
    found = diagnose(network, torch.ones(1, 2))
    assert found.layer is None
    assert found.largest[0][1] == pytest.approx(6.0, abs=1.5)
    assert str(found).splitlines()[0] == "weights: all finite"
    assert not any(module._forward_hooks for module in network)
