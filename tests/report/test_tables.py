import pytest

from latentae.report.results import Results, Value
from latentae.report.tables import (
    best_models,
    caveats,
    drift_table,
    latents_table,
    metric_rows,
    percentile_tables,
    present_metrics,
    render_markdown,
    render_terminal,
)


@pytest.fixture
def results():
    return Results(
        {},
        {
            "kl": {"psnr": Value(21.5, 21.0, 22.0), "rfid": Value(3.25), "kl_bits_per_pixel": Value(5.0)},
            "vq": {"psnr": Value(23.0, 22.5, 23.4), "rfid": Value(4.0), "mine": Value(1.0)},
        },
    )


def test_rows(results):
    rows = {row.name: [str(cell) for cell in row.cells] for row in metric_rows(results)}
    assert rows["psnr"] == ["21.50 [21.00, 22.00]", "23.00 [22.50, 23.40]"]
    assert rows["rfid"] == ["3.250", "4.000"]
    assert rows["kl_bits_per_pixel"] == ["5.000", "-"]


def test_which_is_better_depends_on_the_metric(results):
    assert best_models(results, "psnr") == {"vq"}
    assert best_models(results, "rfid") == {"kl"}
    assert best_models(results, "kl_bits_per_pixel") == set()
    results.models["vq"]["rfid"] = Value(3.2501)
    assert best_models(results, "rfid") == set()  # equal as printed


def test_best_is_only_what_no_other_interval_reaches(results):
    results.models["vq"]["psnr"] = Value(23.0, 21.9, 24.0)  # reaches the other's 22.0
    assert best_models(results, "psnr") == set()
    results.models["vq"]["psnr"] = Value(23.0, 22.1, 24.0)
    assert best_models(results, "psnr") == {"vq"}
    results.models["third"] = {"psnr": Value(22.5, 22.4, 22.6), "rfid": Value(3.0)}
    assert best_models(results, "psnr") == set()  # the second best overlaps, whatever the third does
    results.models["third"]["psnr"] = Value(25.0)  # a number without an interval
    assert best_models(results, "psnr") == {"third"}
    results.models["third"]["psnr"] = Value(23.5)
    assert best_models(results, "psnr") == set()
    results.models["third"]["psnr"] = Value(float("inf"))
    assert best_models(results, "psnr") == {"third"}
    results.models["third"]["psnr"] = Value(float("nan"))
    assert best_models(results, "psnr") == {"vq"}


def test_groups_have_a_best_model_each(results):
    results.models["third"] = {"psnr": Value(30.0, 29.0, 31.0), "rfid": Value(3.0)}
    results.groups = {"f8": ["third", "kl"], "f16": ["vq"]}
    assert best_models(results, "psnr") == {"third"}  # vq has no other beside it
    assert best_models(results, "rfid") == {"third"}
    lines = render_terminal(results).splitlines()
    assert [line.split() for line in lines[:2]] == [["f8", "f8", "f16"], ["third", "kl", "vq"]]
    assert lines[2].split()[1:] == ["3.000", "*", "3.250", "4.000"]
    lines = render_markdown(results).splitlines()
    assert (lines[0], lines[2]) == ("| metric | third | kl | vq |", "| group | f8 | f8 | f16 |")


def test_parameters_are_a_row(report):
    rows = metric_rows(report[0])
    assert (rows[-1].name, [str(cell) for cell in rows[-1].cells]) == ("parameters", ["1.23", "1.23"])
    del report[0].details["kl"]
    assert [str(cell) for cell in metric_rows(report[0])[-1].cells] == ["-", "1.23"]


def test_terminal(results):
    assert present_metrics(results) == ["rfid", "psnr", "kl_bits_per_pixel", "mine"]
    assert render_terminal(results).splitlines() == [
        "                                kl                      vq",
        "rFID                       3.250 *                 4.000",
        "PSNR (dB)   21.50 [21.00, 22.00]    23.00 [22.50, 23.40] *",
        "KL bits/px                 5.000                       -",
        "mine                           -                  1.0000",
    ]


def test_markdown(results):
    lines = render_markdown(results).splitlines()
    assert lines[0] == "| metric | kl | vq |"
    assert "| rFID | **3.250** | 4.000 |" in lines
    assert "| PSNR, dB | 21.50 [21.00, 22.00] | **23.00 [22.50, 23.40]** |" in lines


def test_caveats_are_said_once(report):
    assert caveats(report[0]) == ["Careful.", "Of kl only. (kl)", "Of a <b> & c only. (a <b> & c)"]
    assert caveats(Results({}, {})) == []


def test_drift_percentiles_and_latents(report):
    drift, (psnr,), latents = drift_table(report[0]), percentile_tables(report[0]), latents_table(report[0])
    assert (drift.head, drift.rows[0]) == (["1", "2"], ["kl", "21.00", "19.50"])
    assert (psnr.title, psnr.head, psnr.rows[0]) == ("PSNR", ["5 %", "95 %"], ["kl", "18.00", "30.00"])
    assert (latents.head, latents.rows[0]) == (["0", "1"], ["kl, mean", "0.5", "-0.25"])
    empty = Results({}, {"kl": {}})
    assert (drift_table(empty), percentile_tables(empty), latents_table(empty)) == (None, [], None)
