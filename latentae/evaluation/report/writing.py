"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from latentae.evaluation.report import markdown, page
from latentae.evaluation.report.results import Results


def write_report(results: Results, folder: Path) -> None:
    """Writes ``results.json``, ``results.md`` and ``report.html`` into ``folder``, each whole or not at all.

    Args:
        results: whose pictures lie in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The JSON last: it marks a report as finished.
    for name, text in (
        ("results.md", markdown.render(results)),
        ("report.html", page.render(results, folder)),
        ("results.json", results.to_json()),
    ):
        aside = folder / f".{name}.tmp"
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        aside.replace(folder / name)
