from latentae.evaluation.report.markdown import render
from latentae.evaluation.report.results import ModelDetails, Results, Value


def test_everything_a_reader_needs():
    details = ModelDetails(
        "KLVAE",
        "run/model",
        "ab" * 32,
        1234567,
        8,
        4,
        percentiles={"psnr": {"5": 18.0, "95": 30.0}},
        remarks=["Careful."],
    )
    text = render(Results({"name": "native", "images": 7}, {"kl": {"psnr": Value(21.5)}}, {"kl": details}))
    assert text.startswith("# Reconstruction of 7 images, native\n")
    for line in (
        "| PSNR, dB | 21.50 |",
        "- **PSNR**: Peak signal-to-noise ratio, mean over images",
        "- Careful.",
        "| PSNR | 5 % | 95 % |",
        "| kl | 18.00 | 30.00 |",
        "- images: 7",
        "| kl | KLVAE | 1,234,567 | 8 | 4 | `abababababababab` from run/model |",
    ):
        assert line in text.splitlines()
