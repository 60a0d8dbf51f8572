"""One small quantizer of each type, all of latents with four channels."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentae.quantizers import create_quantizer

TABLE = {"num_codes": 16, "code_dim": 4}
CASES = {
    "vector": {**TABLE, "revive_after": 2},
    "ema": {**TABLE, "revive_after": 2, "gradient": "rotation"},
    "cosine": {**TABLE, "revive_after": 2},
    "simvq": {**TABLE, "revive_after": 2},
    "ibq": {**TABLE, "entropy_weight": 0.1},
    "fsq": {"levels": [8, 5, 5, 4]},
    "lfq": {"bits": 4},
    "bsq": {"bits": 4},
    "residual": {**TABLE, "depth": 3, "dropout": 0.7, "member": {"type": "ema", "revive_after": 2}},
    "grouped": {**TABLE, "groups": 2, "member": {"type": "cosine"}},
}


def make(kind, **changes):
    torch.manual_seed(0)
    return create_quantizer(kind, **{**CASES[kind], **changes})


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class NoWaiting(TorchDispatchMode):
    """Refuses what a GPU's host would have to wait for: values, and shapes that depend on values."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert not any(name in function.name() for name in self.refused), function.name()
        return function(*arguments, **(options or {}))


@pytest.fixture(params=CASES)
def kind(request):
    return request.param
