import re

from latentae.evaluation.report import tables


def cells(html):
    """The texts of a table, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows
    ]


def test_metrics(report):
    html = tables.metrics(report[0])
    assert cells(html) == [
        ["metric", "kl", "a &lt;b&gt; &amp; c"],
        ["rFID", "3.250", "-"],
        ["PSNR dB", "21.50 [21.00, 22.00]", "23.00 [22.50, 23.40]"],
        ["code bits/px", "-", "0.6250"],
        ["KL bits/px", "2.000", "-"],
    ]
    assert re.findall(r'<td class="best">([\d.]+)', html) == ["23.00"]
    assert "<dt>PSNR</dt><dd>Peak signal-to-noise ratio, mean over images; higher is better</dd>" in html


def test_remarks_are_said_once(report):
    html = tables.remarks(report[0])
    assert html.count("Careful.") == 1
    assert "<li>Of kl only. (kl)</li>" in html
    assert tables.remarks(type(report[0])({}, {})) == ""


def test_drift_and_percentiles(report):
    assert cells(tables.drift(report[0]))[:2] == [["rounds", "1", "2"], ["kl", "21.00", "19.50"]]
    assert "of 8 images" in tables.drift(report[0])
    assert cells(tables.percentiles(report[0]))[:2] == [["PSNR", "5 %", "95 %"], ["kl", "18.00", "30.00"]]


def test_latents_and_models(report):
    assert cells(tables.latents(report[0]))[:2] == [["channel", "0", "1"], ["kl, mean", "0.5", "-0.25"]]
    html = tables.models(report[0])
    assert "<dt>parameters</dt><dd>1,234,567</dd>" in html
    assert "<h3>a &lt;b&gt; &amp; c</h3>" in html


def test_definitions_nest():
    html = tables.definitions({"data": {"split": "a<b"}, "none": [], "two": ["x", 3], "limit": None})
    assert "<dt>data</dt><dd><dl><dt>split</dt><dd>a&lt;b</dd></dl></dd>" in html
    assert "<dt>none</dt><dd>none</dd><dt>two</dt><dd>x<br>3</dd><dt>limit</dt><dd>null</dd>" in html


def test_nothing_to_show(report):
    empty = type(report[0])({}, {"kl": {}})
    assert [tables.drift(empty), tables.percentiles(empty), tables.latents(empty)] == ["", "", ""]
