import json
from copy import deepcopy

import pytest

from latentae.cli import main
from latentae.evaluation.compare import differences, render
from latentae.report.evaluation import render_report_markdown
from latentae.report.results import Crop, ModelDetails, Results, TeacherFit, Value


@pytest.fixture
def results():
    protocol = {
        "name": "native",
        "images": 10,
        "data": {"name": "a", "list_sha256": "00" * 32},
        "networks": {"inception": "x"},
        "batch_size": 16,
    }
    metrics = {"psnr": Value(20.0, 19.0, 21.0), "rfid": Value(3.0)}
    return Results(protocol, {"kl": metrics}, {"kl": ModelDetails("KLVAE", "run", "ab", 1, 8, 4)})


def test_equal_reports(results):
    assert differences(results, deepcopy(results)) == []
    text = render(results, deepcopy(results))
    assert text.startswith("The protocols are equal.\n\nkl, the same weights:\n")
    assert "PSNR  20.00   20.00       0\n" in text


@pytest.mark.parametrize(
    ("change", "entry", "values", "meaning"),
    [
        ({"resize": 256}, "resize", ("-", "256"), "other preparation of the images"),
        ({"images": 9}, "images", ("10", "9"), "a Fréchet distance falls with the number of images"),
        ({"data": {"name": "a", "list_sha256": "1"}}, "data.list_sha256", None, "other images"),
        ({"data": {"list_sha256": "00" * 32}}, "data.name", ('"a"', "-"), "where the images come from"),
        (
            {"networks": {"inception": "y"}},
            "networks.inception",
            ('"x"', '"y"'),
            "other weights of the metrics",
        ),
        ({"batch_size": 8}, "batch_size", ("16", "8"), "by rounding only"),
    ],
)
def test_a_difference_and_what_it_means(change, entry, values, meaning, results):
    other = deepcopy(results)
    other.protocol |= change
    (found,) = differences(results, other)
    assert found.entry == entry
    assert values is None or (found.first, found.second) == values
    assert found.meaning.startswith(meaning)
    assert entry in render(results, other)


def test_metrics_that_differ(results):
    other = deepcopy(results)
    other.details["kl"].sha256 = "cd"
    other.models["kl"] = {"psnr": Value(20.5, 20.0, 21.0), "rfid": Value(2.5), "ssim": Value(0.5)}
    text = render(results, other)
    assert "kl, OTHER WEIGHTS:" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[4:]}
    assert lines == {"PSNR": ["20.00", "20.50", "+0.50", "overlap"], "rFID": ["3.000", "2.500", "-0.500"]}
    other.models["kl"]["psnr"] = Value(24.0, 23.0, 25.0)
    assert "+4.00      apart" in render(results, other)


OLD_REPORT = """{
  "protocol": {"name": "native", "images": 10, "networks": {"vgg16": "x"}, "batch_size": 16},
  "models": {"kl": {"psnr": {"value": 20.0, "low": 19.0, "high": 21.0},
                    "lpips_alex": {"value": 0.2, "low": null, "high": null}}},
  "details": {"kl": {"class_name": "KLVAE", "path": "run", "sha256": "ab", "parameters": 1000000,
    "downsampling_factor": 8, "latent_channels": 4, "latents": {"mean": [0.0]},
    "percentiles": {"psnr": {"50": 20.0}}, "cycle_psnr": {"1": 20.0}, "remarks": ["Careful."]}},
  "pictures": [{"index": 3, "name": "a.png", "why": ["random"], "original": "pictures/000003.png",
    "reconstructions": {"kl": "pictures/000003_0.png"}, "values": {"kl": {"psnr": 20.0}}}]
}
"""


def test_reports_from_before_there_were_colours(results, tmp_path):
    """What the version before wrote opens, is shown, and is compared with what is written now."""
    (tmp_path / "results.json").write_text(OLD_REPORT)
    old = Results.load(tmp_path)
    assert (old.crops, old.groups) == ([], {})
    assert json.loads(old.to_json()) == json.loads(OLD_REPORT)
    assert "| parameters, M | 1.00 |" in render_report_markdown(old)
    results.models["kl"] |= {"delta_e": Value(1.5, 1.4, 1.6), "ifid": Value(9.0)}
    results.protocol |= {"ifid": "halfway", "networks": {"vgg16": "x", "clip": "y"}}
    results.crops = [Crop("kl", 3, "a.png", 0, 0, 4.0, "a.png", {})]
    for one, other in ((old, results), (results, old)):
        text = render(one, other)
        assert "PSNR  20.00   20.00       0" in text
        assert "networks.clip" in text
        assert "iFID is measured in one of them only" in text
        assert "ΔE" not in text


def fit_of(psnr, verdict, relative_mse):
    decoded = {"psnr": Value(psnr, psnr - 1, psnr + 1), "psnr_loss": Value(20 - psnr)}
    return TeacherFit(verdict, "", decoded, {"psnr": Value(19.0)}, False, relative_mse, {})


def test_the_fit_to_a_teacher(results):
    other = deepcopy(results)
    assert "denoisers" not in render(results, other)
    for report, psnr, verdict, moved in ((results, 18.0, "moved", 0.25), (other, 19.75, "close", 0.0625)):
        report.teacher = "sdxl"
        report.fit = {"kl": fit_of(psnr, verdict, moved)}
        report.protocol["teacher"] = {"name": "sdxl", "sha256": verdict}
    text = render(results, other)
    assert "kl and denoisers of sdxl (first) and sdxl (second):" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "new decoder, old latents: PSNR 18.00 19.75 +1.75 overlap" in lines
    assert "new decoder, old latents: PSNR lost 2.00 0.25 -1.75" in lines
    assert "old decoder, new latents: PSNR 19.00 19.00 0" in lines
    assert "relative MSE of latents 0.2500 0.0625 -0.1875" in lines
    assert "verdict moved close" in lines
    (found,) = differences(results, other)
    assert (found.entry, found.meaning[:15]) == ("teacher.sha256", "another teacher")


def test_no_model_in_common(results):
    other = deepcopy(results)
    other.models = {"vq": other.models["kl"]}
    with pytest.raises(ValueError, match="the first is of kl, the second of vq"):
        render(results, other)


@pytest.fixture
def reports(tmp_path):
    for name, batch_size in (("a", 16), ("b", 8)):
        (tmp_path / name).mkdir()
        results = Results({"name": "native", "batch_size": batch_size}, {"kl": {"psnr": Value(20.0)}})
        (tmp_path / name / "results.json").write_text(results.to_json(), encoding="utf-8")
    return tmp_path


def test_two_reports(reports, capsys):
    assert main(["compare", str(reports / "a"), str(reports / "b/results.json")]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["batch_size", "16", "8", "by", "rounding", "only"] in lines
    assert ["PSNR", "20.00", "20.00", "0"] in lines


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("c", "c cannot be read: No such file or directory"),
        ("a/text", "this is not the results.json of an evaluation"),
    ],
)
def test_no_report(second, says, reports, capsys):
    (reports / "a/text").write_text("no JSON")
    assert main(["compare", str(reports / "a"), str(reports / second)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error


def test_help(capsys):
    assert main(["compare", "--help"]) == 0
    assert "REPORT" in capsys.readouterr().out
    assert main(["compare"]) == 2
