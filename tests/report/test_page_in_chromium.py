"""The page in a real browser: no errors, no network, and everything that can be clicked or pressed works."""

from dataclasses import replace

import pytest

from latentae.report.evaluation import render_page


@pytest.fixture
def open_page(browser, report):
    """Opens the report; afterwards nothing may have gone wrong, or been asked of a network."""
    contexts, problems, requests = [], [], []

    def start(**options):
        results, folder = report
        (folder / "report.html").write_text(render_page(results, folder), encoding="utf-8")
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "report.html").as_uri())
        wait_until(page, "document.getElementById('before').complete")
        wait_until(page, "document.getElementById('after').complete")
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


def wait_until(page, condition):
    """Asks until a condition holds. Playwright's own waiting needs eval, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never true: {condition}")


def clip(page):
    return page.evaluate("getComputedStyle(document.getElementById('after')).clipPath")


def caption(page):
    return page.inner_text("#caption")


def pixel(page):
    """The difference that is shown at the picture's middle."""
    script = """() => {
        const canvas = document.getElementById('difference');
        return canvas.hidden ? null : [...canvas.getContext('2d').getImageData(16, 12, 1, 1).data];
    }"""
    return page.evaluate(script)


def test_the_slider_moves_what_is_shown(open_page):
    page = open_page()
    assert clip(page) == "inset(0px 0px 0px 50%)"
    page.focus("#wipe")
    page.keyboard.press("ArrowLeft")
    assert clip(page) == "inset(0px 0px 0px 49.5%)"
    assert caption(page).startswith("1 of 4")  # the slider's key, not the picture's
    assert page.evaluate("document.getElementById('edge').style.left") == "49.5%"


def test_the_line_can_be_dragged(open_page):
    page = open_page()
    page.locator("#layers").scroll_into_view_if_needed()
    box = page.locator("#layers").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 5)
    page.mouse.up()
    assert page.evaluate("document.getElementById('wipe').value") == "25"
    assert clip(page) == "inset(0px 0px 0px 25%)"


def test_keys(open_page):
    page = open_page()
    assert caption(page) == "1 of 4: 0.png (worst of kl) · original | kl"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")
    assert caption(page) == "2 of 4: 1.png (worst of kl, median) · original | a <b> & c"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert caption(page).startswith("4 of 4: 3.png (random)")
    page.focus("#wipe")
    page.keyboard.press("1")  # works wherever the focus is
    assert caption(page).endswith("original | kl")
    page.keyboard.press("9")
    assert caption(page).endswith("original | kl")
    widths = []
    for _ in range(4):
        page.keyboard.press("z")
        widths.append(page.evaluate("document.getElementById('before').getBoundingClientRect().width"))
    assert widths[:3] == [32, 64, 128]
    assert widths[3] == 8 * 32  # as large as whole numbers go


def test_differences_are_what_they_say(open_page):
    page = open_page()
    assert pixel(page) is None
    page.keyboard.press("d")
    assert pixel(page) == [128 + 4 * 10, 128, 128 + 4 * 5, 255]
    page.keyboard.press("2")
    wait_until(page, "document.getElementById('after').complete")
    wait_until(
        page,
        "document.getElementById('difference').getContext('2d').getImageData(1, 1, 1, 1).data[0] !== 168",
    )
    assert pixel(page) == [128 + 4 * 20, 128, 128 + 4 * 10, 255]
    assert page.get_attribute("#toggle-difference", "aria-pressed") == "true"
    page.select_option("#left", "0")  # one model against another
    wait_until(
        page,
        "document.getElementById('difference').getContext('2d').getImageData(1, 1, 1, 1).data[0] !== 208",
    )
    assert pixel(page) == [128 + 4 * 10, 128, 128 + 4 * 5, 255]
    page.click("#toggle-difference")
    assert pixel(page) is None


def test_buttons(open_page):
    page = open_page()
    page.click("[data-filter=median]")
    assert caption(page).startswith("1 of 2: 1.png")
    assert page.locator("[data-picture]:visible").count() == 2
    page.keyboard.press("ArrowRight")
    assert caption(page).startswith("2 of 2: 2.png")
    page.click("[data-filter='']")
    page.click("[data-picture='3']")
    page.click("[data-model='1']")
    assert caption(page) == "4 of 4: 3.png (random) · original | a <b> & c"
    assert page.locator("#values .current").inner_text().split("\t") == ["a <b> & c", "23.00", "0.5000"]
    page.select_option("#left", "0")
    assert caption(page).endswith("· kl | a <b> & c")


@pytest.mark.parametrize("width", [320, 375, 800, 1600])
def test_nothing_scrolls_sideways(width, report, open_page):
    results, _ = report
    long = "a_model_with_a_name_that_is_longer_than_a_phone_is_wide_" * 2
    for number in range(8):
        name = f"{long}{number}"
        results.models[name] = results.models["kl"]
        results.details[name] = replace(results.details["kl"], path=long * 3, remarks=[long * 3])
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("z")
    page.keyboard.press("z")
    page.keyboard.press("z")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_worst_crops_are_seen_at_any_width(report, open_page):
    results, _ = report
    for number in range(6):
        results.models[f"model_{number}"] = results.models["kl"]
        for crop in results.crops:
            crop.reconstructions[f"model_{number}"] = crop.original
    for width in (320, 1200):
        page = open_page(viewport={"width": width, "height": 800})
        script = """[...document.querySelectorAll('.strip img')].map(
            (image) => [image.getBoundingClientRect().right, image.naturalWidth])"""
        boxes = page.evaluate(script)
        assert len(boxes) == 2 * 9
        assert all(right <= width and natural == 32 for right, natural in boxes)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light(open_page):
    def page_is_dark(page):
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.evaluate("getComputedStyle(document.body).color")
        assert shade != text
        return shade == "rgb(20, 22, 26)"

    for scheme in ("dark", "light"):
        page = open_page(color_scheme=scheme)
        assert page_is_dark(page) == (scheme == "dark")
        page.click("#theme")
        assert page_is_dark(page) != (scheme == "dark")
        page.click("#theme")
        assert page_is_dark(page) == (scheme == "dark")


def test_without_pictures(report, browser):
    results, folder = report
    results.pictures = []
    (folder / "report.html").write_text(render_page(results, folder), encoding="utf-8")
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    page.click("#theme")
    assert problems == []
    page.close()
