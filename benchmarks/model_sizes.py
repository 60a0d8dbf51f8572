"""Parameters and work of every shipped model, as a Markdown table: `python benchmarks/model_sizes.py`.

FLOPs are counted by torch for one image of 256×256 pixels, a multiply-add as two, on the meta device, where
nothing is computed.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentae.build import build_autoencoder
from latentae.config import read_config, shipped_configs

_SIDE = 256


def main() -> None:
    print("| config | class | parameters | factor | latents | codes | encoder | decoder |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, path in shipped_configs().items():
        config = read_config(path).model
        model = build_autoencoder(config, sample_size=_SIDE).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        factor = model.downsampling_factor
        side = _SIDE // factor
        model = model.to("meta")
        latents = torch.empty(1, config.latent_channels, side, side, device="meta")
        images = torch.empty(1, config.in_channels, _SIDE, _SIDE, device="meta")
        codes = f"{model.quantize.num_codes:,}" if hasattr(model, "quantize") else ""
        print(
            f"| `{name}` | {config.class_} | {parameters / 1e6:.2f} M | f{factor} | "
            f"{config.latent_channels}x{side}x{side} | {codes} | {_gflop(model.encoder, images):.1f} GFLOP | "
            f"{_gflop(model.decoder, latents):.1f} GFLOP |"
        )


def _gflop(module: torch.nn.Module, argument: torch.Tensor) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(argument)
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
