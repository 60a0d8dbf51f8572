"""Draws README's picture: a photograph and its reconstructions by several models.

    python docs/tools/readme_picture.py docs/reconstructions.jpg \\
        KL-VAE=run_kl VQ-VAE=run_vq VQGAN=run autoencoder=run_ae

Prints the PSNR of each reconstruction of the whole photograph. Without `--photo` it is scikit-image's cat, a
validation photograph of the quickstarts, so that none of them was trained on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from skimage.data import chelsea
from torch import Tensor

from latentae import load_autoencoder
from latentae.data import decode_image
from latentae.data.transforms import to_tensor
from latentae.evaluation.metrics import psnr
from latentae.report.grids import Figure, image_grid

_SIDE, _MAGNIFICATION = 192, 3


def draw(models: dict[str, str], photo: Tensor, corner: tuple[int, int]) -> tuple[Figure, dict[str, float]]:
    """Returns the picture, and the PSNR in dB of each model on the whole photograph.

    Args:
        models: what ``load_autoencoder`` opens, by the names to show.
        photo: [1, 3, H, W] in [-1, 1].
        corner: (top, left) of the square of 192 pixels that is shown; its middle is shown magnified, too.

    Raises:
        ValueError: the square does not lie inside the photograph.
    """
    top, left = corner
    height, width = photo.shape[2:]
    if not (0 <= top <= height - _SIDE and 0 <= left <= width - _SIDE):
        raise ValueError(f"a square of {_SIDE} pixels at {corner} is not inside of {height}x{width} pixels")
    images, ratios = {"photograph": photo}, {}
    for name, place in models.items():
        model = load_autoencoder(place, torch_dtype=torch.float32).eval()
        with torch.no_grad():
            images[name] = model(photo).sample.clamp(-1, 1)
        ratios[name] = psnr(images[name], photo).item()
    squares = torch.cat([image[:, :, top : top + _SIDE, left : left + _SIDE] for image in images.values()])
    start, side = _SIDE // 3, _SIDE // _MAGNIFICATION
    details = squares[:, :, start : start + side, start : start + side]
    figure = image_grid(
        "A photograph that no model has seen, and its reconstructions",
        [squares, F.interpolate(details, scale_factor=float(_MAGNIFICATION), mode="nearest")],
        rows=["pixels 1:1", f"detail, {_MAGNIFICATION}:1"],
        columns=["photograph", *(f"{name}, {ratio:.1f} dB" for name, ratio in ratios.items())],
    )
    return figure, ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the picture and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="picture to write, .jpg or .png")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="run, model folder or file")
    parser.add_argument("--photo", type=Path, help="photograph; default: scikit-image's cat")
    parser.add_argument("--corner", nargs=2, type=int, default=(14, 74), metavar=("TOP", "LEFT"))
    options = parser.parse_args(arguments)
    photo = chelsea() if options.photo is None else decode_image(options.photo, 3)
    models = dict(text.split("=", 1) for text in options.models)
    figure, ratios = draw(models, to_tensor(photo)[None], tuple(options.corner))
    Image.fromarray(figure.picture).save(options.out, quality=90)
    for name, ratio in ratios.items():
        print(f"{name}: PSNR {ratio:.2f} dB")


if __name__ == "__main__":
    main()
