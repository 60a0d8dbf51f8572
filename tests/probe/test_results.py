import json
import math

from latentae.probe.results import ModelResult, ProbeResults
from latentae.probe.training import CurvePoint
from latentae.report.results import Value


def example(names=("a", "b")):
    models = {
        name: ModelResult(
            path=f"runs/{name}",
            class_name="KLVAE",
            sha256="0" * 64,
            latent_shape=[4, 8, 8],
            patch_size=1,
            parameters=1000,
            metrics={"fd_vgg16_generated": 3.5 + number, "flow_loss": 0.7},
            curve=[CurvePoint(5, 1.0, 1.5, 1.4, 0.9), CurvePoint(10, 2.0, 1.2, 1.1 - number / 10, 0.7)],
            sample_seconds=0.1,
            pictures={"samples": f"{name}/samples.png"},
        )
        for number, name in enumerate(names)
    }
    reconstruction = {name: {"psnr": Value(25.0, 24.0, 26.0)} for name in names}
    return ProbeResults({"steps": 10, "image_size": 32}, models, reconstruction, ["few images"])


def test_written_and_read():
    results = example()
    again = ProbeResults.from_dict(json.loads(json.dumps(results.to_dict())))
    assert again == results


def test_numbers_that_json_cannot_hold():
    results = example()
    results.reconstruction["a"]["psnr"] = Value(math.inf)
    text = json.dumps(results.to_dict(), allow_nan=False)
    assert math.isnan(ProbeResults.from_dict(json.loads(text)).reconstruction["a"]["psnr"].value)


def test_tables():
    table = example().generation_table()
    assert table.models["b"]["fd_vgg16_generated"] == Value(4.5)
    assert example().reconstruction_table().models["a"]["psnr"].low == 24.0
