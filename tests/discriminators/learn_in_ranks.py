"""What two processes run: trains discriminators on shares of the same images, and compares with one process.

All in float64, so that ranks and one process differ by 1e-15 or by a mistake.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentae.discriminators import FrozenFeatures, PatchGAN, WaveletDiscriminator

BATCH, STEPS, MICRO_BATCHES = 4, 4, 2


class TwoLayers(nn.Module):
    """A frozen network of two convolutions, drawn from a seed."""

    channels = (4, 6)
    windows = (((2, 2),), ())

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        hidden = self.first(images).tanh()
        return [hidden, self.second(nn.functional.avg_pool2d(hidden, 2)).tanh()]


def build(kind: str) -> nn.Module:
    trunk = TwoLayers()
    torch.manual_seed(0)
    networks = {
        "frozen_features": lambda: FrozenFeatures(trunk=trunk, head_channels=16),
        "wavelet": lambda: WaveletDiscriminator(base_channels=8, num_layers=2, norm="spectral"),
        "patchgan": lambda: PatchGAN(base_channels=8, num_layers=1, norm="spectral"),
    }
    return networks[kind]().double()


def learn(kind: str, rank: int, world: int) -> list[Tensor]:
    """Returns the gradients, weights and spectral vectors after each step, with R1 in the third one."""
    network = build(kind)
    wrapped: nn.Module = network
    if world > 1:
        wrapped = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)
    generator = torch.Generator().manual_seed(5)
    share, found = BATCH // world, []
    for step in range(STEPS):
        for micro_batch in range(MICRO_BATCHES):
            both = torch.rand(2, BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
            real, fake = both[:, rank * share : (rank + 1) * share]
            waits = world > 1 and micro_batch < MICRO_BATCHES - 1
            with wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                # What the autoencoder learns: it leaves no gradient of weights.
                fake.requires_grad_()
                (gradient,) = torch.autograd.grad(wrapped(fake).sum() / BATCH, fake)
                logits_fake = wrapped(fake.detach())
                logits_real = wrapped(real.requires_grad_())
                loss = (
                    nn.functional.softplus(-logits_real).mean() + nn.functional.softplus(logits_fake).mean()
                )
                if step == 2:
                    (slope,) = torch.autograd.grad(logits_real.sum(), real, create_graph=True)
                    loss = loss + slope.square().sum() / logits_real.numel()
                (loss / MICRO_BATCHES).backward()
        found += [parameter.grad.clone() for parameter in network.parameters()]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found += [value.clone() for value in network.state_dict().values()]
        gathered = [torch.empty_like(gradient) for _ in range(world)]
        if world > 1:
            dist.all_gather(gathered, gradient)
        found.append(torch.cat(gathered) if world > 1 else gradient)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    dist.init_process_group("gloo")
    compared = {}
    for kind in ("frozen_features", "wavelet", "patchgan"):
        several = learn(kind, dist.get_rank(), dist.get_world_size())
        alone = learn(kind, 0, 1)
        for ours, expected in zip(several, alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        compared[kind] = len(alone)
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(compared))
    dist.destroy_process_group()
