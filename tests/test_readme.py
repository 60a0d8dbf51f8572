"""The code of README and of the guide runs as written, on a model where README says it is."""

import re
from pathlib import Path

import pytest
import torch

from latentae import VQGAN
from latentae.config.describe import known_keys
from latentae.export import export_diffusers

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def run_blocks(page, names):
    """Runs a page's Python blocks in order and returns how many there are."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return len(blocks)


def test_python_blocks_run_in_order(tmp_path, monkeypatch, alexnet_trunk):
    torch.manual_seed(0)
    model = VQGAN(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=1024,
    )
    export_diffusers(model, tmp_path / "run/model")
    monkeypatch.chdir(tmp_path)
    names = {}
    assert run_blocks(README, names) == 3
    assert names["image"].size == (64, 64)
    assert names["output"].indices.shape == (2, 25, 19)
    assert names["summary"]["step"] == 3
    assert Path("my_report/report.html").is_file()
    assert names["report"].max_error < names["report"].tolerance
    # The other pages use the model, images and results of README.
    counts = {page.stem: run_blocks(page, dict(names)) for page in PAGES[1:]}
    assert (counts["latents"], counts["python"], counts["quantizers"]) == (2, 2, 1)
    assert names["vae"].config.scaling_factor is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_headings_and_keys_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"(?:scripts|benchmarks|configs)/[\w./]+\.(?:py|yaml)", text):
        assert (ROOT / path).is_file(), path
    for link, heading in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", text):
        target = page.parent / link if link else page
        assert target.is_file(), link
        assert not heading or heading in headings(target), f"{link}#{heading}"
    for key in re.findall(r"`((?:data|model|loss|decoder)\.[\w.]+)`", text):
        if key != "data.image_szie":
            assert key in known_keys(), key
    assert re.findall(r"\{\w+\}", text) == []  # no placeholder is left


def headings(page):
    """Returns the anchors that GitHub gives to a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_readme_is_short_and_names_every_page():
    lines = README.read_text().splitlines()
    assert len(lines) <= 250
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in README.read_text()
