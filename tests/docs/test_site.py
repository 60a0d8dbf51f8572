"""The documentation as a site: builds offline, links lead somewhere, nothing comes from another host."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "docs")
SOURCES += ("benchmarks/results",)


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built_with_its_title(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"{title}</h1>" in re.sub(r"<a class=.headerlink.*?</a>", "", html(site, f"{page.stem}.html"))
    assert "make quickstart" in html(site, "index.html")


def html(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_links_of_the_repository_lead_to_places_of_the_site(site: Path) -> None:
    assert 'href="training.html"' in html(site, "index.html")
    assert 'href="index.html#use-the-model-in-a-pipeline"' in html(site, "files.html")
    [results] = (site / "benchmarks/results").glob("step_epyc_*.html")
    assert f'href="benchmarks/results/{results.name}"' in html(site, "training.html")
    assert 'href="../../' in results.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?(?:https?:)?//"
    for page in site.rglob("*.html"):
        assert re.findall(loaded, page.read_text(encoding="utf-8")) == [], page.name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?https?:", sheet.read_text(encoding="utf-8")) == []


def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    for name in SOURCES:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    with (tmp_path / "README.md").open("a", encoding="utf-8") as readme:
        readme.write("\n[x](docs/no_such_page.md) and [y](docs/training.md#no-such-heading)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2, done.stderr  # and no other link is broken
    assert "no_such_page.md" in warnings[0]
    assert "#no-such-heading" in warnings[1]
