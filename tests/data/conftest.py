"""Caches of latentae and of ``datasets`` that no test shares with another or with the user."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """The folder of both caches: ``latentae`` and ``datasets``."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("LATENTAE_CACHE", str(folder / "latentae"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets"))
    return folder
