"""``inspect.html``: all figures of an inspection on one page that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from latentae.evaluation.report.document import document, section
from latentae.evaluation.report.tables import definitions
from latentae.latents.inspection.sections import Section


def render(title: str, subtitle: str, sections: Sequence[Section], facts: dict[str, Any]) -> str:
    """The page, with the figures embedded.

    Args:
        title, subtitle: plain text.
        sections: in order.
        facts: what was inspected and how, at the end of the page.
    """
    parts = [section(escape(part.title), _content(part)) for part in sections]
    return document(title, subtitle, [*parts, section("What was inspected", definitions(facts))])


def _content(part: Section) -> str:
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in part.remarks)
    picture = ""
    if part.figure is not None:
        encoded = base64.b64encode(part.figure.png()).decode()
        picture = (
            f'<figure style="background:#fff"><img alt="{escape(part.figure.title)}" style="max-width:100%" '
            f'src="data:image/png;base64,{encoded}"></figure>'
        )
    return f"{picture}{f'<ul>{remarks}</ul>' if remarks else ''}<p class='quiet'>{escape(part.about)}</p>"
