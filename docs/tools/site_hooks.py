"""Hooks of MkDocs: README becomes the home page, and what a page links to outside of docs/ joins the site.

The pages keep the relative links that work in the repository; they are rewritten while the site is built.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_HOME = "README.md"
# The target of a link or picture, with its heading if there is one.
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[\w-]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the home page, and every file outside of docs/ that is linked to from a page."""
    waiting = [_HOME, *(f"docs/{file.src_uri}" for file in files if file.is_documentation_page())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            targets = (_resolve(path, link) for _, link, _ in _LINK.findall(text))
            waiting += [target for target in targets if (ROOT / target).is_file()]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites a page's links from places in the repository to places in the site."""
    place = page.file.src_uri
    source = str(Path(page.file.abs_src_path).relative_to(ROOT).as_posix())

    def rewrite(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        target = _place(_resolve(source, link))
        return f"{before}{posixpath.relpath(target, posixpath.dirname(place) or '.')}{after}"

    return _LINK.sub(rewrite, markdown)


def _resolve(source: str, link: str) -> str:
    """Returns the place in the repository that a link of a file leads to."""
    return os.path.normpath(PurePosixPath(source).parent / link).replace(os.sep, "/")


def _place(path: str) -> str:
    """Returns a file's place in the site, given its place in the repository."""
    return "index.md" if path == _HOME else path.removeprefix("docs/")
