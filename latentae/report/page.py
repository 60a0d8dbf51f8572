"""Pages: jinja2 templates that become one HTML file, which needs no network, or one Markdown file."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, features

from latentae.files import write_aside

if TYPE_CHECKING:
    from jinja2 import Environment

# Pixels per side of what a page shows of a picture: larger ones would make the page too large to pass on.
LARGEST_SIDE = 768


@dataclass(frozen=True)
class PageChart:
    """A chart as a page shows it: a title, a note beside it, and SVG."""

    title: str
    note: str
    svg: str


def write_page(path: Path, text: str) -> None:
    """Writes a page or another text for people, whole or not at all; a broken file name gets escapes."""
    write_aside(path, text.encode(errors="backslashreplace"))


def render(template: str, **values: Any) -> str:
    """Returns a template of ``report/templates``, filled in; values are escaped in ``.html`` files."""
    return _environment().get_template(template).render(**values)


def data_uri(path: Path) -> str:
    """Returns a picture as a lossless data URI; of a large picture its central part."""
    with Image.open(path) as picture:
        shown = picture.crop(_central_box(picture.size))
    encoded = io.BytesIO()
    if features.check("webp"):  # about a third smaller, and not in every build of Pillow
        shown.save(encoded, "WEBP", lossless=True, quality=60, method=3, exact=True)
        return _uri("webp", encoded.getvalue())
    shown.save(encoded, "PNG")
    return _uri("png", encoded.getvalue())


def png_uri(content: bytes) -> str:
    """Returns the content of a PNG file as a data URI."""
    return _uri("png", content)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("latentae.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = _asset
    environment.filters["text"] = _text
    environment.filters["script_json"] = _script_json
    return environment


def _asset(name: str) -> str:
    """Returns the text of a style sheet or a script, which a page contains as it is."""
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _text(value: Any) -> str:
    """Returns a string as it is, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _script_json(data: Any) -> str:
    """Returns JSON that cannot end the script element in which it stands."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _central_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns left, upper, right and lower edge."""
    width, height = (min(side, LARGEST_SIDE) for side in size)
    left, top = (max(0, side - LARGEST_SIDE) // 2 for side in size)
    return left, top, left + width, top + height
