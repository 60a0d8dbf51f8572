import re

from latentae.evaluation.report.document import asset, document, section


def test_text_is_escaped_and_parts_are_in_order():
    page = document(
        "a <b>", "x & y", [section("One", "<p>1</p>"), section("Two", "<p>2</p>")], end="<!-- end -->"
    )
    assert "<title>a &lt;b&gt;</title>" in page
    assert '<div class="quiet">x &amp; y</div>' in page
    assert page.index("<h2>One</h2>") < page.index("<h2>Two</h2>") < page.index("<!-- end -->")
    assert asset("report.css") in page


def test_nothing_can_be_fetched():
    page = document("t", "s", [])
    assert "default-src 'none'" in page
    assert re.findall(r"https?://", page) == []


def test_an_empty_section_is_none():
    assert section("One", "") == ""
