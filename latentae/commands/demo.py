"""The command that serves a page: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentae.commands.options import Command, CommandParser, add_value_range, open_device
from latentae.console import say


def _demo_options(parser: CommandParser) -> None:
    parser.add_models()
    parser.add_families()
    parser.add_precision("models")
    parser.add_switch("--alpha", "images are RGBA: show them on a checkerboard")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    parser.add_number("--port", "port; omitted: the first free one from 7860 on")
    parser.add_switch("--no-open", "do not open a browser", dest="open_browser", action="store_false")
    what = "folder for temporary files, which are removed at the end; omitted: the system's"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=what)
    parser.add_number("--max-side", "shrink longer images to N pixels", default=1024)
    parser.add_number("--max-pixels", "refuse images of more than N pixels", default=50_000_000)
    parser.add_number("--max-megabytes", "refuse files of more than N million bytes", default=50)
    add_value_range(parser.add_argument_group("reading the images, as data.* in training"))


def _demo(
    *,
    models: list[str],
    families: list[str],
    precision: str,
    alpha: bool,
    max_side: int,
    max_pixels: int,
    value_range: tuple[float, float] | None,
    **options: Any,
) -> None:
    from latentae.demo.serve import Server, serve

    server = Server(**options)
    server.check()  # before torch is loaded, which takes seconds

    from latentae.data.arrays import check_value_range
    from latentae.demo.compute import Reading

    check_value_range(value_range)
    reading = Reading(alpha, max_side, max_pixels, value_range)
    with open_device() as device:
        serve(models, server, reading, families=families, precision=precision, device=device, say=say)


DEMO = Command(
    "demo",
    _demo,
    _demo_options,
    "Serves a page on this machine: drop an image, and see its reconstruction, the amplified difference,\n"
    "the latent channels and the codes; compare models with a slider; interpolate between two images;\n"
    "sample. Nothing leaves the machine, and no other machine reaches the page unless --host says so. Runs\n"
    "in one process, until Ctrl-C. Needs Gradio: pip install 'latentae[demo]'.",
    example="latentae demo mine=run other=path/to/model",
    interrupted="the page was not open yet",
    less_memory="name fewer models",
)
