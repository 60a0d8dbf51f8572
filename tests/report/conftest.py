import numpy as np
import pytest
from PIL import Image

from latentae.report.results import Crop, ModelDetails, Picture, Results, Value


@pytest.fixture
def report(tmp_path):
    """The results of two models on four pictures, which lie in the folder that is returned too."""
    folder = tmp_path / "report"
    (folder / "pictures").mkdir(parents=True)
    names = ["kl", "a <b> & c"]
    pictures = []
    for number, why in enumerate((["worst of kl"], ["worst of kl", "median"], ["median"], ["random"])):
        shade = np.full((24, 32, 3), 40 * number + 20, np.uint8)
        files = [f"pictures/{number:06d}{end}.png" for end in ("", "_0", "_1")]
        for step, file in enumerate(files):
            Image.fromarray(shade + np.uint8(step) * np.array([10, 0, 5], np.uint8)).save(folder / file)
        values = {name: {"psnr": 20.0 + number, "ssim": 0.5} for name in names}
        pictures.append(
            Picture(number, f"{number}.png", why, files[0], dict(zip(names, files[1:], strict=True)), values)
        )
    results = Results(
        protocol={
            "name": "native",
            "images": 70,
            "data": {"split": "test"},
            "unreadable": [],
            "cycle_images": 8,
        },
        models={
            "kl": {"psnr": Value(21.5, 21.0, 22.0), "rfid": Value(3.25), "kl_bits_per_pixel": Value(2.0)},
            "a <b> & c": {"psnr": Value(23.0, 22.5, 23.4), "bits_per_pixel": Value(0.625)},
        },
        details={
            name: ModelDetails(
                "KLVAE",
                f"runs/{name}",
                "ab" * 32,
                1234567,
                8,
                4,
                latents={"mean": [0.5, -0.25]},
                percentiles={"psnr": {"5": 18.0, "95": 30.0}},
                cycle_psnr={"1": 21.0, "2": 19.5},
                remarks=["Careful.", f"Of {name} only."],
            )
            for name in names
        },
        pictures=pictures,
        crops=[
            Crop(names[1], 2, "2.png", 16, 32, 4.25, pictures[2].original, pictures[2].reconstructions),
            Crop(names[1], 1, "1.png", 0, 0, 3.5, pictures[1].original, pictures[1].reconstructions),
        ],
    )
    return results, folder
