"""What a reader must know of the numbers, each sentence once."""

from __future__ import annotations

from latentae.evaluation.report.results import Results


def remarks(results: Results) -> list[str]:
    """The remarks of all models, with the models in brackets where a remark is not of all of them."""
    said: dict[str, list[str]] = {}
    for model, details in results.details.items():
        for remark in details.remarks:
            said.setdefault(remark, []).append(model)
    return [
        remark if len(models) == len(results.models) else f"{remark} ({', '.join(models)})"
        for remark, models in said.items()
    ]
