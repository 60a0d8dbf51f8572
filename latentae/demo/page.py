"""The demo's page: what can be chosen, and where the pictures of ``compute`` appear.

Import this module after the environment of Gradio has been set; see ``serve``.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from latentae.console import describe_lack_of_memory, is_out_of_memory
from latentae.demo.compute import (
    MOST_CHANNELS,
    Demo,
    amplified_difference,
    channel_pictures,
    code_maps,
    has_codes,
    is_scaled,
)
from latentae.evaluation.models import NamedModel, factor_of
from latentae.report.grids import Picture

TITLE = "latentae demo"
CSS = """
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container :is(p, li) { overflow-wrap: anywhere; }
.wide .image-frame { width: 100% !important; }
.wide .image-frame img {
  width: 100% !important; height: auto !important; max-height: 640px; object-fit: contain !important;
}
.pixels img { image-rendering: pixelated; }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)) !important; }
.grid-wrap { min-height: 0 !important; max-height: none !important; }
@media (max-width: 40rem) {
  .grid-container { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)) !important; }
}
.caption-label { max-width: 95% !important; }
"""
_LARGEST_WITH_SQUARE_PIXELS = 512  # larger pictures may shrink on the page, which needs a filter
_SAMPLES = 6
_MOST_WAITING = 16
_SECONDS_BETWEEN_CLEANINGS, _SECONDS_KEPT = 300, 3600
_ONE_BY_ONE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "models",  # all events together: a machine has memory for one image at a time
    "api_visibility": "private",
    "show_progress": "minimal",
}

ABOUT_DIFFERENCE = "The reconstruction minus the image, times the gain. Mid-grey means no difference."
ABOUT_CHANNELS = (
    "Unscaled latents, of VQ models before quantization. Each channel has a scale of its own: its smallest "
    "value is black and its largest white."
)
ABOUT_CODES = "Equal colours are equal codes. The colours have no other meaning."
ABOUT_INTERPOLATION = (
    "Both images are encoded, and a point between their latents is decoded. The second image is cropped and "
    "resized to the size of the first. The latents are the posterior's mode. A VQ model quantizes the point "
    "before it decodes."
)
ABOUT_PRIOR = (
    "Independent standard normal numbers, in the scale of a denoiser, decoded. **These are not pictures, and "
    "a good model makes none here**: the latents of an image depend on their neighbours, and these do not. "
    "A denoiser (a diffusion model) learns that dependence."
)
ABOUT_SAMPLED_CODES = (
    "Codes drawn independently, each as often as it occurs in the built-in photographs, decoded. **These are "
    "not pictures, and a good model makes none here**: the codes of an image depend on their neighbours, "
    "and these do not. A prior over the codes (a transformer, for example) learns that dependence."
)
ABOUT_NO_SCALE = "This model does not record the scale of its latents, so noise cannot be brought into it."


def theme() -> Any:
    """Returns a theme with the fonts of the system: no font is loaded from anywhere."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def build_page(demo: Demo) -> gr.Blocks:
    """Returns the page. ``launch`` starts it; it takes ``theme()`` and ``CSS``."""
    names = list(demo.models)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_SECONDS_BETWEEN_CLEANINGS, _SECONDS_KEPT)
    ) as page:
        gr.Markdown(f"# {TITLE}\n" + "\n".join(f"- {describe(model)}" for model in demo.models.values()))
        image = _upload("Image: drop a file here", "image")
        with gr.Tabs():
            with gr.Tab("Reconstruct"):
                _reconstruct_tab(demo, names, image)
            if len(names) > 1:
                with gr.Tab("Compare"):
                    _compare_tab(demo, names, image)
            with gr.Tab("Interpolate"):
                _interpolate_tab(demo, names, image)
            with gr.Tab("Sample"):
                _sample_tab(demo, names)
    page.queue(max_size=_MOST_WAITING, api_open=False)
    return page


def describe(model: NamedModel) -> str:
    """Returns a model's name, class, downsampling factor, channels and codes as a line of Markdown."""
    autoencoder: Any = model.autoencoder
    facts = [
        type(autoencoder).__name__,
        f"{factor_of(model)}x{factor_of(model)} pixels per latent",
        f"{autoencoder.latents_channels} latent channels",
    ]
    if model.upscale > 1:
        facts.append(f"decodes to {model.upscale} times the size that it encodes")
    if has_codes(model):
        facts.append(f"{model.num_codes} codes")
    return f"**{_plain(model.name)}**: {', '.join(facts)}"


def _reconstruct_tab(demo: Demo, names: list[str], image: Any) -> None:
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        gain = gr.Slider(1, 32, value=8, step=1, label="Gain of the difference", elem_id="gain")
    numbers = gr.Markdown("Drop an image to see what the model keeps of it.", elem_id="numbers")
    with gr.Row():
        slider = _slider("Image | reconstruction", "reconstruction")
        difference = _picture("Difference", "difference", ABOUT_DIFFERENCE)
    channels = _gallery("Latent channels", "channels", pixels=True)
    gr.Markdown(ABOUT_CHANNELS)
    with gr.Column(visible=has_codes(demo.models[names[0]])) as part:
        codes = _gallery("Codes", "codes", pixels=True)
        gr.Markdown(ABOUT_CODES)

    def reconstruct(path: str | None, name: str, gain: float) -> list[Any]:
        model = demo.models[name]
        shown_part = gr.update(visible=has_codes(model))
        if path is None:
            return ["", None, None, None, None, shown_part]
        found = demo.reconstruct(name, path)
        maps = code_maps(found.indices, model.num_codes or 0) if found.indices is not None else None
        return [
            _numbers(demo, name, path),
            _shown(found.picture, (found.original, found.picture)),
            _shown(found.picture, amplified_difference(found.original, found.picture, gain)),
            channel_pictures(found.latents),
            maps,
            shown_part,
        ]

    def amplify(path: str | None, name: str, gain: float) -> Any:
        if path is None:
            return None
        found = demo.reconstruct(name, path)
        return amplified_difference(found.original, found.picture, gain)

    given = [image, model, gain]
    shown = [numbers, slider, difference, channels, codes, part]
    gr.on([image.change, model.change], _told(reconstruct), given, shown, **_ONE_BY_ONE)
    gain.release(_told(amplify), given, difference, **_ONE_BY_ONE)


def _compare_tab(demo: Demo, names: list[str], image: Any) -> None:
    with gr.Row():
        left = gr.Dropdown(names, value=names[0], label="Left", elem_id="left")
        right = gr.Dropdown(names, value=names[1], label="Right", elem_id="right")
        gain = gr.Slider(1, 32, value=8, step=1, label="Gain of the difference")
    numbers = gr.Markdown("Drop an image to compare two models.", elem_id="comparison")
    with gr.Row():
        slider = _slider("Left | right", "models")
        difference = _picture("Difference of the models", "models-difference", "The right minus the left.")

    def compare(path: str | None, left: str, right: str, gain: float) -> list[Any]:
        if path is None:
            return ["", None, None]
        first, second = (demo.reconstruct(name, path).picture for name in (left, right))
        lines = "\n".join(f"- {_numbers(demo, name, path)}" for name in dict.fromkeys((left, right)))
        both = _shown(first, (first, second), label=f"{left} | {right}")
        return [lines, both, _shown(first, amplified_difference(first, second, gain))]

    triggers = [image.change, left.change, right.change, gain.release]
    gr.on(triggers, _told(compare), [image, left, right, gain], [numbers, slider, difference], **_ONE_BY_ONE)


def _interpolate_tab(demo: Demo, names: list[str], image: Any) -> None:
    gr.Markdown(ABOUT_INTERPOLATION)
    with gr.Row():
        second = _upload("Second image: drop a file here", "second")
        with gr.Column():
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            kind = gr.Radio(["linear", "spherical"], value="linear", label="Path between the latents")
            share = gr.Slider(0, 1, value=0.5, step=0.05, label="Share of the second image", elem_id="share")
    picture = _picture("Decoded point", "interpolation", "")

    def interpolate(first: str | None, second: str | None, name: str, kind: str, share: float) -> Any:
        if first is None or second is None:
            return None
        picture = demo.interpolate(name, first, second, share, spherical=kind == "spherical")
        return _shown(picture, picture)

    triggers = [image.change, second.change, model.change, kind.change, share.release]
    gr.on(triggers, _told(interpolate), [image, second, model, kind, share], picture, **_ONE_BY_ONE)


def _sample_tab(demo: Demo, names: list[str]) -> None:
    def about(name: str) -> str:
        model = demo.models[name]
        if has_codes(model):
            return ABOUT_SAMPLED_CODES
        return ABOUT_PRIOR if is_scaled(model) else ABOUT_NO_SCALE

    caption = gr.Markdown(about(names[0]), elem_id="about-samples")
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="sampled")
        seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
        button = gr.Button("Sample", variant="primary", elem_id="sample")
    samples = _gallery("Samples", "samples", pixels=False)

    def sample(name: str, seed: int | None) -> Any:
        return demo.sample(name, _SAMPLES, int(seed or 0))

    model.change(lambda name: (about(name), None), model, [caption, samples], api_visibility="private")
    button.click(_told(sample), [model, seed], samples, **_ONE_BY_ONE)


def _numbers(demo: Demo, name: str, path: str) -> str:
    """Returns what was measured of an image as one line of Markdown."""
    found, loaded = demo.reconstruct(name, path), demo.load(path)
    height, width = loaded.size
    channels, rows, columns = found.latents.shape
    parts = [
        f"**{_plain(name)}**: PSNR {found.psnr:.2f} dB",
        f"{width}x{height} pixels",
        f"{columns}x{rows} latents of {channels} channels",
    ]
    if loaded.size != loaded.file_size:
        parts.append(f"shrunk from {loaded.file_size[1]}x{loaded.file_size[0]}")
    if channels > MOST_CHANNELS:
        parts.append(f"the first {MOST_CHANNELS} channels are shown")
    return ", ".join(parts)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows errors of input and of memory on the page, as one sentence; others keep their traceback."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if is_out_of_memory(error):
                message = f"{describe_lack_of_memory(error)}: start the demo with a smaller --max-side"
            elif isinstance(error, ValueError | OSError):
                message = str(error)
            else:
                raise
            # The message may contain the name of an uploaded file, and the page takes it for HTML.
            raise gr.Error(html.escape(message), print_exception=False) from error

    return run


def _plain(name: str) -> str:
    """Returns a name in which Markdown finds nothing to format."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-.!|~&" else letter for letter in name)


def _shown(picture: Picture, value: Any, **changes: Any) -> Any:
    """Returns an update that shows a value; the pixels of a small picture stay square."""
    is_small = max(picture.shape[:2]) <= _LARGEST_WITH_SQUARE_PIXELS
    return gr.update(value=value, elem_classes=["wide", *(["pixels"] if is_small else [])], **changes)


def _upload(label: str, identifier: str) -> gr.File:
    return gr.File(label=label, file_types=["image", ".npy"], height=140, elem_id=identifier)


def _slider(label: str, identifier: str) -> gr.ImageSlider:
    return gr.ImageSlider(
        label=label, elem_id=identifier, format="png", interactive=False, max_height=640, min_width=320
    )


def _picture(label: str, identifier: str, about: str) -> gr.Image:
    with gr.Column(min_width=320):
        picture = gr.Image(
            label=label,
            elem_id=identifier,
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
        )
        if about:
            gr.Markdown(about)
    return picture


def _gallery(label: str, identifier: str, *, pixels: bool) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        elem_id=identifier,
        format="png",
        interactive=False,
        columns=4,
        elem_classes=["pixels"] if pixels else [],
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
    )
