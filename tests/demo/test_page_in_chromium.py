"""The demo as a person meets it: a process, a browser, and nothing that leaves this machine or the folder."""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.demo.compute import Reading, amplified_difference, read_image, reconstruct_image
from latentae.evaluation.models import NamedModel
from tests.latents.conftest import make_kl, make_vq
from tests.processes import ROOT, environment, free_port
from tests.training.conftest import draw_images

SECONDS = 30_000  # in ms; a busy machine needs longer than the page itself

# Records what the process connects to, looks up and writes.
RECORDER = """
import json, os, sys
if "RECORD" in os.environ:
    record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            found = ["write", os.path.abspath(os.fsdecode(path))]
        elif event == "os.mkdir":
            found = ["write", os.path.abspath(os.fsdecode(arguments[0]))]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            found = ["connect", str(arguments[1][0])]
        elif event == "socket.getaddrinfo":
            found = ["connect", str(arguments[0])]
        else:
            return
        os.write(record, (json.dumps(found) + "\\n").encode())
    sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models and pictures."""
    folder = tmp_path_factory.mktemp("demo")
    make_kl(scaling_factor=0.5).save_pretrained(folder / "kl")
    make_vq().save_pretrained(folder / "vq")
    draw_images(folder / "images", count=2, size=48)
    Image.new("RGB", (300, 300)).save(folder / "images/many_pixels.png")
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    Image.fromarray(noise).save(folder / "images/many_bytes.png")
    for name in ("site", "home", "system", "out"):
        (folder / name).mkdir()
    (folder / "site/sitecustomize.py").write_text(RECORDER)
    return folder


@pytest.fixture(scope="module")
def url(browser, place):
    """The address of the served page; afterwards everything must be gone, and nothing may be elsewhere."""
    models = [f"kl={place / 'kl'}", f"vq={place / 'vq'}"]
    limits = ["--max-pixels", "80000", "--max-megabytes", "1"]
    arguments = [*models, *limits, "--out", str(place / "out"), "--no-open", "--port", str(free_port())]
    settings = environment(
        HOME=str(place / "home"),
        TMPDIR=str(place / "system"),
        RECORD=str(place / "record"),
        PYTHONDONTWRITEBYTECODE="1",
        GRADIO_SHARE="True",  # must have no effect
        PYTHONPATH=os.pathsep.join([str(place / "site"), str(ROOT)]),
    )
    command = [sys.executable, "-m", "latentae.cli", "demo", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings, cwd=place)
    line = server.stderr.readline()
    if not line.startswith("the page: http://127.0.0.1:"):
        server.kill()
        pytest.fail(line + server.stderr.read())
    yield line.split()[2]
    server.send_signal(signal.SIGTERM)
    rest = server.stderr.read()
    assert (server.wait(30), rest) == (0, "the page is closed; its temporary files are removed\n")
    assert list((place / "out").iterdir()) == []
    assert [path for path in (place / "home").rglob("*") if path.is_file()] == []
    assert [path for path in (place / "system").rglob("*") if path.is_file()] == []
    record = [json.loads(line) for line in (place / "record").read_text().splitlines()]
    assert {host for kind, host in record if kind == "connect"} <= {"127.0.0.1", "localhost"}
    written = [path for kind, path in record if kind == "write" and not path.startswith("/dev/")]
    own = [path for path in written if path.startswith(str(place / "out"))]
    assert len(own) > 10  # so the recorder works
    # Python tries out the system's folder, which is empty again. Torch makes an empty folder for compiled
    # code, and Gradio a seed at its first import.
    harmless = (str(place / "system"), str(place / "out"))
    others = [path for path in written if not path.startswith(harmless)]
    known = re.compile(r".*/torchinductor_\w+|.*/gradio/hash_seed\.txt")
    assert [path for path in others if not known.fullmatch(path)] == []


@pytest.fixture
def open_page(browser, url):
    """Opens the page; afterwards nothing may have gone wrong, or been asked of another machine."""
    contexts, problems, requests = [], [], []

    def start(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        page.goto(url)
        page.wait_for_selector("#image input[type=file]", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []
    assert len(requests) > 10
    assert [found for found in requests if not found.startswith((url, "data:", "blob:"))] == []


def drop(page, where, path):
    page.set_input_files(f"{where} input[type=file]", path)


def wait_for_text(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
        arg=[selector, text],
    )


def pictures(page, selector, count):
    """The pictures that a component shows, decoded, once there are so many."""
    find = f"[...document.querySelectorAll('{selector} img')].filter((image) => image.naturalWidth > 0)"
    page.wait_for_function(f"{find}.length === {count}")
    sources = page.evaluate(f"{find}.map((image) => image.src)")
    return [np.asarray(Image.open(io.BytesIO(page.request.get(source).body()))) for source in sources]


def expected(model, path):
    images = read_image(path, 3, Reading()).fit((48, 48))
    return reconstruct_image(NamedModel("model", "model", model), images)


def test_everything_on_the_page(open_page, place):
    torch.manual_seed(0)
    image, second = place / "images/000.png", place / "images/001.png"
    kl, vq = (expected(make(), image) for make in (make_kl, make_vq))
    page = open_page()

    # The reconstruction, its numbers, the difference and the channels.
    drop(page, "#image", image)
    wait_for_text(page, "#numbers", f"kl: PSNR {kl.psnr:.2f} dB, 48x48 pixels, 24x24 latents of 4 channels")
    original, reconstruction = pictures(page, "#reconstruction", 2)
    assert (original == np.asarray(Image.open(image))).all()
    assert (original == kl.original).all()
    assert np.abs(reconstruction.astype(int) - kl.picture).max() <= 1  # other threads may round differently
    (difference,) = pictures(page, "#difference", 1)
    assert (difference == amplified_difference(original, reconstruction, 8)).all()
    assert len(pictures(page, "#channels", 4)) == 4
    assert page.locator("#codes").count() == 0
    page.fill("#gain input[type=number]", "2")
    page.press("#gain input[type=number]", "Tab")
    page.wait_for_function(f"document.querySelector('#difference img').src !== {page_source(page)!r}")
    (difference,) = pictures(page, "#difference", 1)
    assert (difference == amplified_difference(original, reconstruction, 2)).all()

    # Two models beside each other.
    page.get_by_role("tab", name="Compare").click()
    wait_for_text(page, "#comparison", f"vq: PSNR {vq.psnr:.2f} dB")
    left, right = pictures(page, "#models", 2)
    assert (left == reconstruction).all()
    assert np.abs(right.astype(int) - vq.picture).mean() < 1

    # A point between two images.
    page.get_by_role("tab", name="Interpolate").click()
    drop(page, "#second", second)
    (point,) = pictures(page, "#interpolation", 1)
    assert point.shape == (48, 48, 3)

    # Samples, and what to think of them.
    page.get_by_role("tab", name="Sample").click()
    wait_for_text(page, "#about-samples", "These are not pictures")
    page.click("#sample")
    samples = pictures(page, "#samples", 6)
    assert {sample.shape for sample in samples} == {(16, 16, 3)}
    assert len({sample.tobytes() for sample in samples}) == 6


def page_source(page):
    return page.evaluate("document.querySelector('#difference img').src")


def test_uploads_are_bounded(open_page, place, url):
    page = open_page()
    drop(page, "#image", place / "images/many_pixels.png")
    wait_for_text(page, "body", "300 by 300 are 90000 pixels, more than the limit of 80000")
    page = open_page()
    large = place / "images/many_bytes.png"
    assert large.stat().st_size > 1_000_000
    drop(page, "#image", large)
    wait_for_text(page, "body", "exceed the maximum allowed size")
    # The server refuses it, too.
    file = {"name": large.name, "mimeType": "image/png", "buffer": large.read_bytes()}
    assert page.request.post(f"{url}gradio_api/upload", multipart={"files": file}).status == 413
    folder = next((place / "out").iterdir())
    assert max(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 1_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(open_page, place, scheme):
    page = open_page(viewport={"width": 375, "height": 700}, color_scheme=scheme)
    drop(page, "#image", place / "images/000.png")
    pictures(page, "#channels", 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shade.strip("rgb()").split(","))) < 200) == (scheme == "dark")
    assert "system-ui" in page.evaluate("getComputedStyle(document.querySelector('#numbers')).fontFamily")


def test_other_names_of_this_machine_are_refused(url):
    import urllib.error
    import urllib.request

    asked = urllib.request.Request(url, headers={"Host": "a.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(asked)
    assert html.unescape(urllib.request.urlopen(url).read().decode()).count("latentae demo") >= 1
