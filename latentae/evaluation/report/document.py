"""The frame of a report's page: one file that needs no network, light or dark, narrow or wide."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

# Nothing may be fetched, whatever a name in the results might look like.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, subtitle: str, sections: Iterable[str], controls: str = "", end: str = "") -> str:
    """The whole page.

    Args:
        title, subtitle: plain text.
        sections: HTML, as ``section`` gives it.
        controls: HTML at the right of the title.
        end: HTML after everything else, such as scripts.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{asset("report.css")}</style>
</head>
<body>
<header>
<div><h1>{escape(title)}</h1><div class="quiet">{escape(subtitle)}</div></div>
{controls}
</header>
<main>
{"".join(sections)}
</main>
{end}
</body>
</html>
"""


def section(title: str, content: str) -> str:
    """A part of the page under a heading, both HTML; "" where there is nothing in it."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def asset(name: str) -> str:
    """The text of a file in ``assets``."""
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
