"""Nothing in an optimizer step makes Python wait for the device: what a log line needs is read there."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentae.training import update
from latentae.training.log import Meter
from latentae.training.trainer import Trainer

# Operations whose result, or its size, has to be known to the host before it can go on.
WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"),
    "lift_fresh",  # a tensor of Python's numbers, which is copied to the device
}


# Copies to the host, which are no operations where the tensor is on a CPU already. Not numpy(), which a GPU's
# tensors refuse: the CPU's look-up of codes uses it.
COPYING = ("tolist", "cpu")


class Waits(TorchDispatchMode):
    """Counts the operations of ``WAITING`` and the methods of ``COPYING`` by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}
        self.paused = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        if {name, name.partition(".")[0]} & WAITING:
            self.count(name)
        return function(*args, **(kwargs or {}))

    def count(self, name):
        if not self.paused:
            self.counts[name] = self.counts.get(name, 0) + 1


def counted(method, name, waits):
    def call(self, *arguments, **options):
        waits.count(name)
        return method(self, *arguments, **options)

    return call


@pytest.mark.parametrize("performance", ["auto", "memory", "off"])
def test_a_step_between_log_lines_never_waits(tiny, monkeypatch, performance):
    trainer = Trainer(tiny(f"performance={performance}", "ema_decay=0.9", "max_steps=8"))
    loader, meter, waits = trainer.batches(), Meter(), Waits()
    batches = iter([next(loader) for _ in range(3)])  # which decodes images, on the host
    step = update._step

    def step_uncounted(*arguments):
        # A CPU's optimizer is asked in Python whether to step; a GPU's fused one reads the flag itself.
        waits.paused = True
        step(*arguments)
        waits.paused = False

    monkeypatch.setattr(update, "_step", step_uncounted)
    trainer.optimizer_step(batches, meter)
    for name in COPYING:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name), name, waits))
    waits.counts.clear()
    with waits:
        trainer.optimizer_step(batches, meter)
        trainer.optimizer_step(batches, meter)
        assert waits.counts == {}
        assert meter.read()  # a log line does wait, and is seen to
        assert torch.ones(()).item() == 1
    assert waits.counts == {"tolist": 2, "_local_scalar_dense.default": 1}
