"""What the page's text says; tests/evaluation/report/test_page_in_chromium.py looks at it in a browser."""

import json
import re
from html.parser import HTMLParser

from latentae.evaluation.report.page import render


class Tags(HTMLParser):
    """Start tags with their attributes, and whether each was closed."""

    void = frozenset(["meta", "link", "input", "img", "br"])

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_well_formed_and_alone(report):
    page = Tags(render(*report))
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:,").startswith("data:"), (tag, attributes)
    headings = re.findall(r"<h2>(.*?)</h2>", render(*report))
    assert headings == [
        "Metrics",
        "To be read with care",
        "Pictures",
        "Charts",
        "Rate and distortion",
        "Drift",
        "Percentiles over images",
        "Latents",
        "Models",
        "Protocol",
    ]


def test_names_end_no_script(report):
    results, folder = report
    results.pictures[0].name = "</script><script>alert(1)</script>"
    text = render(results, folder)
    assert text.count("</script>") == 2
    (data,) = re.findall(r'id="pictures-data">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(data)["pictures"][0]["name"] == results.pictures[0].name


def test_without_pictures(report):
    results, folder = report
    results.pictures = []
    page = Tags(render(results, folder))
    assert page.open == []
    assert "<h2>Pictures</h2>" not in render(results, folder)
