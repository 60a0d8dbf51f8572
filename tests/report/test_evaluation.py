"""The report of an evaluation; tests/report/test_page_in_chromium.py looks at it in a browser."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from latentae.report import evaluation
from latentae.report.evaluation import picture_data, render_page, render_report_markdown, write_report
from latentae.report.results import ModelDetails, Results, Value


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


def cells(page, heading):
    """The texts of the first table under a heading, row by row."""
    table = page[page.index(f"<h2>{heading}</h2>") :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], flags=re.DOTALL)
    return [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows
    ]


def test_the_page_is_well_formed_and_alone(report):
    text = render_page(*report)
    page = Tags(text)
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:,").startswith(("data:", "#")), (tag, attributes)
    assert "default-src 'none'" in text
    assert re.findall(r"https?://", text) == []
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Metrics",
        "Caveats",
        "Pictures",
        "Worst colours",
        "Charts",
        "Rate and distortion",
        "Drift",
        "Percentiles over images",
        "Latents",
        "Models",
        "Protocol",
    ]


def test_the_page_s_numbers(report):
    text = render_page(*report)
    assert cells(text, "Metrics") == [
        ["metric", "kl", "a &lt;b&gt; &amp; c"],
        ["rFID", "3.250", "-"],
        ["PSNR dB", "21.50 [21.00, 22.00]", "23.00 [22.50, 23.40]"],
        ["code bits/px", "-", "0.6250"],
        ["KL bits/px", "2.000", "-"],
        ["parameters M", "1.23", "1.23"],
    ]
    assert re.findall(r'<td class="best">([\d.]+)', text) == ["23.00"]
    worst = text[text.index("<h2>Worst colours</h2>") : text.index("<h2>Charts</h2>")]
    assert re.findall(r"<h3>(.*?)</h3>", worst) == ["a &lt;b&gt; &amp; c"]
    assert re.findall(r"ΔE ([\d.]+) ", worst) == ["4.25", "3.50"]
    assert re.findall(r'alt="(.*?)"', worst)[:3] == ["original", "kl", "a &lt;b&gt; &amp; c"]
    assert "2.png, 16 px from the left, 32 from the top" in worst
    assert "<dt>PSNR</dt><dd>Peak signal-to-noise ratio, mean over images; higher is better</dd>" in text
    assert cells(text, "Drift")[:2] == [["rounds", "1", "2"], ["kl", "21.00", "19.50"]]
    assert "of 8 images" in text
    assert cells(text, "Latents")[:2] == [["channel", "0", "1"], ["kl, mean", "0.5", "-0.25"]]
    assert "<dt>parameters</dt><dd>1,234,567</dd>" in text
    assert "<h3>a &lt;b&gt; &amp; c</h3>" in text


def test_the_protocol_nests(report):
    results, folder = report
    results.protocol = {"data": {"split": "a<b"}, "none": [], "two": ["x", 3], "limit": None}
    text = re.sub(r"\s*\n\s*", "", render_page(results, folder))
    assert "<dt>data</dt><dd><dl><dt>split</dt><dd>a&lt;b</dd></dl></dd>" in text
    assert "<dt>none</dt><dd>none</dd><dt>two</dt><dd>x<br>3</dd><dt>limit</dt><dd>null</dd>" in text


def test_names_end_no_script(report):
    results, folder = report
    results.pictures[0].name = "</script><script>alert(1)</script>"
    text = render_page(results, folder)
    assert text.count("</script>") == 2
    (data,) = re.findall(r'id="pictures-data">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(data)["pictures"][0]["name"] == results.pictures[0].name


def test_only_the_kinds_that_there_are(report):
    results, folder = report
    text = render_page(results, folder)
    assert all(f'data-filter="{kind}"' in text for kind in ("", "worst", "median", "random"))
    assert "a &lt;b&gt; &amp; c</button>" in text
    results.pictures = results.pictures[:1]
    assert 'data-filter="random"' not in render_page(results, folder)


def test_without_pictures(report):
    results, folder = report
    results.pictures = []
    text = render_page(results, folder)
    assert Tags(text).open == []
    assert "<h2>Pictures</h2>" not in text


def test_what_the_script_is_given(report):
    results, folder = report
    data = picture_data(results, folder)
    assert data["models"] == ["kl", "a <b> & c"]
    assert len(data["files"]) == 12
    entry = data["pictures"][1]
    assert entry["values"]["kl"] == {"PSNR": "21.00", "SSIM": "0.5000"}
    assert entry["why"] == ["worst of kl", "median"]
    assert {entry["original"], *entry["reconstructions"].values()} <= data["files"].keys()


def test_of_a_large_picture_the_middle_is_said(report):
    results, folder = report
    Image.fromarray(np.zeros((10, 1000, 3), np.uint8)).save(folder / results.pictures[0].original)
    entries = picture_data(results, folder)["pictures"]
    assert entries[0]["part"] == "the middle of 1000 x 10 pixels"
    assert entries[1]["part"] == ""


def test_markdown_has_everything_a_reader_needs():
    details = ModelDetails(
        "KLVAE",
        "run/model",
        "ab" * 32,
        1234567,
        8,
        4,
        percentiles={"psnr": {"5": 18.0, "95": 30.0}},
        remarks=["Careful <of> this."],
    )
    results = Results({"name": "native", "images": 7}, {"kl": {"psnr": Value(21.5)}}, {"kl": details})
    lines = render_report_markdown(results).splitlines()
    assert lines[0] == "# Reconstruction of 7 images, native"
    for line in (
        "| PSNR, dB | 21.50 |",
        "- **PSNR**: Peak signal-to-noise ratio, mean over images",
        "- Careful <of> this.",
        "| PSNR | 5 % | 95 % |",
        "| kl | 18.00 | 30.00 |",
        "- images: 7",
        "| kl | KLVAE | 1,234,567 | 8 | 4 | `abababababababab` from run/model |",
    ):
        assert line in lines


def test_three_files(report):
    results, folder = report
    write_report(results, folder)
    assert Results.load(folder) == results
    assert (folder / "results.md").read_text().startswith("# Reconstruction of 70 images, native")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    names = ["pictures", "report.html", "results.json", "results.md"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_no_results_before_the_page_is_there(report, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is full")

    results, folder = report
    monkeypatch.setattr(evaluation, "render_page", fail)
    with pytest.raises(OSError, match="full"):
        write_report(results, folder)
    assert not (folder / "results.json").exists()


def test_names_that_are_no_utf_8_are_escaped(report):
    results, folder = report
    results.protocol["data"]["name"] = "caf\udce9"
    write_report(results, folder)
    assert Results.load(folder).protocol["data"]["name"] == "caf\udce9"
    assert rb"caf\udce9" in (folder / "results.md").read_bytes()
