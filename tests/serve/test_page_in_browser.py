"""The page, in a real Chromium, used as a person uses it: with a pointer, with the keyboard alone, on a phone."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import browser
import numpy as np
import page_models
import pytest
import servers
from browser import ENTER, LEFT, RIGHT, SPACE, TAB, UP, Browser
from servers import Running

from modelctl.data import digits
from modelctl.options import KeygenOptions, KeyType
from modelctl.steps.keygen import keygen

pytestmark = [pytest.mark.real_parts, pytest.mark.slow]

SEVEN = ((-60, -90), (60, -90), (10, 0), (-30, 110))
AXE = """
    const { violations } = await axe.run()
    return violations.map(v => `${v.id}: ${v.nodes.map(n => n.html + n.any.map(x => x.message)).join(' | ')}`)"""
TOO_SMALL = """
    return [...document.querySelectorAll('button, .button, select, summary')]
      .filter(one => one.offsetWidth && one.getBoundingClientRect().height < 24).map(one => one.outerHTML)"""
BARS = """
    return [...document.querySelectorAll('.bars li')]
      .map(one => [...one.querySelectorAll('span')].map(each => each.innerText))"""
PHONE, DESK = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with servers.running(page_models.zoo(tmp_path_factory.mktemp("models")), "--timeout-s", "10") as found:
        yield found
        assert found.stop() == (0, "")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if missing := browser.missing():
        pytest.skip(missing)
    with browser.browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(window: Browser, served: Running) -> Iterator[Browser]:
    """The page, loaded anew; whatever is done with it, its console stays empty and it asks its own server only."""
    window.size(*DESK)
    window.requests()
    opened(window, served, "digits")
    yield window
    assert window.complaints() == []
    assert [one for one, _ in window.requests() if not one.startswith(served.url + "/")] == []


def opened(window: Browser, server: Running, model: str) -> None:
    """Load the page at a model."""
    window.open("about:blank")
    window.open(f"{server.url}/#{model}@1")
    window.wait(lambda: window.text("#title") == model)


def answered(page: Browser) -> Any:
    """The JSON of the answer that is shown, once it is there."""
    page.wait(lambda: "there and back" in page.text("#took"))
    return json.loads(page.run("return document.querySelector('#raw pre').textContent"))


def shown(page: Browser) -> list[tuple[str, str]]:
    """The names and scores of the bars."""
    return [(name, score) for name, score in page.run(BARS)]


def curled(page: Browser, folder: Path) -> Any:
    """What the line that is to be copied brings, run in a shell."""
    line = page.text("#curl")
    assert line.startswith("curl -sS 'http://127.0.0.1:")
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30, cwd=folder)
    return json.loads(found.stdout)


def test_a_drawn_digit_is_read_and_the_line_to_be_copied_asks_the_same(page: Browser, tmp_path: Path) -> None:
    page.draw("canvas.board", *SEVEN)
    page.click("#send")
    found = answered(page)
    (best, *_) = found["predictions"][0]
    assert best["label"] == "seven"
    assert best["score"] > 0.5
    assert shown(page)[0] == ("seven", f"{best['score']:.4g}")
    assert len(shown(page)) == 3
    assert f"sha256:{found['model'].partition('sha256:')[2][:12]}" in page.text("#took")
    told = "there and back, {} in the server: {} to read it, {} waiting, {} in the model · by digits"
    assert re.search(told.replace("{}", r"[\d.]+ ms"), page.text("#took"))
    assert curled(page, tmp_path) == found


def test_an_uploaded_picture_is_answered_as_predict_answers_it(page: Browser, served: Running, tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image", reason="pip install pillow")
    with np.load(digits.path()) as held:
        pixels, label = (held["x"][0, 0] * 255).astype(np.uint8), held["y"][0]
    images.fromarray(pixels).save(tmp_path / "zero.png")
    page.type("input[type=file]", str(tmp_path / "zero.png"))
    page.wait(lambda: "zero.png" in page.text(".drop"))
    page.click("#send")
    found = answered(page)
    assert found == served.ask("/predict/digits", (tmp_path / "zero.png").read_bytes(), Content_Type="image/png").json
    assert found["predictions"][0][0]["index"] == label
    assert curled(page, tmp_path) == found


def test_a_picture_can_be_dropped_and_pasted(page: Browser) -> None:
    script = """
        const canvas = document.querySelector('canvas.board')
        const file = new File([await new Promise(done => canvas.toBlob(done))], `${a[0]}.png`, { type: 'image/png' })
        const held = new DataTransfer(); held.items.add(file)
        const event = a[0] === 'drop' ? new DragEvent('drop', { dataTransfer: held, bubbles: true, cancelable: true })
          : new ClipboardEvent('paste', { clipboardData: held, bubbles: true })
        document.querySelector('.drop').dispatchEvent(event)"""
    for way in ("drop", "paste"):
        page.run(script, way)
        page.wait(partial(page.run, "return document.querySelector('.drop').innerText.includes(a[0])", f"{way}.png"))
    page.click("#again")
    assert "paste.png" not in page.text(".drop")


def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    def focused() -> str:
        script = "const e = document.activeElement; return `${e.tagName} ${e.innerText || e.ariaLabel || e.id}`"
        return str(page.run(script)).split("\n")[0]

    def reach(words: str) -> None:
        for _ in range(20):
            if words in focused():
                assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
            page.press(TAB)
        raise AssertionError(f"{words} was not reached")

    page.press(TAB)
    assert focused() == "A Skip to the input"
    page.press(ENTER)
    reach("Board to draw on")
    page.press(
        *[UP] * 15, *[LEFT] * 8, SPACE, *[RIGHT] * 16, *[LEFT] * 2, *[browser.DOWN, LEFT, browser.DOWN] * 12, SPACE
    )
    reach("Ask the model")
    page.press(ENTER)
    assert answered(page)["predictions"][0][0]["label"] == "seven"
    reach("As it came")
    page.press(ENTER)
    assert page.run("return document.querySelector('#raw').open")
    reach("Manifest")
    page.press(SPACE)
    page.wait(lambda: '"made_by"' in page.text("#manifest pre"))


def test_a_table_is_asked_by_its_columns_and_a_text_by_its_words(
    page: Browser, served: Running, tmp_path: Path
) -> None:
    opened(page, served, "houses")
    assert page.text(".cell select").split("\n")[1] == "<img src='x' onerror='alert(1)'>"  # a text as any other
    page.run(
        "document.querySelector('.cell input').value = '150'; document.querySelector('.cell select').value = 'Cork'"
    )
    page.click("#send")
    assert answered(page)["outputs"] == {"price": [[32.0]]}
    assert page.text("#answer").split() == ["price", "[1,1]", "32"]
    assert curled(page, tmp_path) == answered(page)
    opened(page, served, "meanings")
    page.type("textarea", "a very good day")
    page.click("#send")
    expected = served.ask("/predict/meanings", {"instances": ["a very good day"]}).json
    assert answered(page) == expected
    assert curled(page, tmp_path) == expected


def test_tensors_are_asked_as_numbers_and_drawn_where_they_look_like_pictures(
    page: Browser, served: Running, tmp_path: Path
) -> None:
    opened(page, served, "pair")
    page.click("#send")
    assert answered(page)["outputs"] == {"sum": [[pytest.approx(1.1), pytest.approx(1.2)]], "twice": [[2, 2]]}
    page.run("const t = document.querySelector('textarea'); t.value = '[[1,2,3]]'; t.dispatchEvent(new Event('input'))")
    page.click("#send")
    page.wait(lambda: "the model takes [batch,2]" in page.text("#answer"))
    opened(page, served, "bare")
    page.click("#send")
    page.wait(lambda: page.text("#answer") == "Draw or choose a picture first.")
    page.draw("canvas.board", *SEVEN)
    page.click("#send")
    assert int(np.argmax(answered(page)["outputs"]["logits"])) == 7
    assert shown(page)[0][0] == "[7]"
    assert curled(page, tmp_path) == answered(page)


def test_rate_latency_and_the_chain_are_drawn(page: Browser) -> None:
    page.draw("canvas.board", *SEVEN)
    for _ in range(3):
        page.click("#send")
        answered(page)
    drawn = "return [...document.querySelectorAll('.graph .line')].every(one => one.getAttribute('d'))"
    page.wait(lambda: page.run(drawn) and "ms" in page.text(".graph .p99 ~ b, .graph b.p99"))
    half = "const { quantile } = await import('/page/live.js'); return quantile(a[0], a[1], 0.5)"
    assert page.run(half, [0, 10, 0], [1, 2]) == 1.5
    assert page.run(half, [0, 0], [1]) is None
    chain = page.text("#chain").lower()
    assert chain.index("optimize") < chain.index("digits") < chain.index("checkpoint") < chain.index("linear")


def test_it_loads_in_two_round_trips_and_asks_for_nothing_twice(window: Browser, served: Running) -> None:
    window.open("about:blank")
    window.requests()
    opened(window, served, "digits")
    asked = [(one.removeprefix(served.url), why) for one, why in window.requests() if "live.json" not in one]
    assert len(asked) == len({one for one, _ in asked}) > 10
    assert {one for one, why in asked if why != "parser"} <= {"/"}  # the page itself, by us


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_in_the_way_of_those_who_see_or_hear_or_move_otherwise(
    page: Browser, served: Running, dark: bool
) -> None:
    root = (
        subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()
        if shutil.which("npm")
        else ""
    )
    axe = Path(root) / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("npm install -g axe-core")
    script = f"{axe.read_text()}; {AXE}"
    page.size(*DESK, dark=dark)
    page.draw("canvas.board", *SEVEN)
    page.click("#send")
    answered(page)
    assert page.run(script) == []
    assert page.run("return getComputedStyle(document.querySelector('.fill')).transitionDuration") == "0s"
    opened(page, served, "houses" if dark else "pair")
    assert page.run(script) == []
    if dark:
        return
    page.open(f"{served.url}/docs")
    page.wait(lambda: page.run("return document.querySelectorAll('.op').length") > 5)
    page.click('[data-path="/predict/houses"] summary')
    page.run(
        "for (const one of [...document.querySelectorAll('.op')].slice(10)) if (!one.open) one.remove()"
    )  # the same
    assert page.run(script) == []


def test_a_screen_reader_is_told_where_it_is_and_what_each_thing_does(page: Browser) -> None:
    page.devtools("Accessibility.enable")
    nodes = page.devtools("Accessibility.getFullAXTree")["nodes"]
    told = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
    roles = [role for role, _ in told]
    assert {"banner", "navigation", "main", "contentinfo", "form"} <= set(roles)
    assert roles.count("main") == 1
    for role, name in told:
        assert name or role not in (
            "button",
            "textbox",
            "combobox",
            "checkbox",
            "link",
            "application",
            "form",
            "region",
        )
    assert page.run("return document.getElementById('answer').ariaLive") == "polite"


@pytest.mark.parametrize("model", ["digits", "houses", "meanings", "bare", "pair"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Browser, served: Running, model: str) -> None:
    page.size(*PHONE)
    opened(page, served, model)
    wide = "return document.documentElement.scrollWidth"
    assert page.run(wide) == 360
    assert page.run(TOO_SMALL) == []
    if model == "digits":
        page.draw("canvas.board", (0, -60), (0, 60))
        page.click("#send")
        answered(page)
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        page.wait(lambda: '"made_by"' in page.text("#manifest pre"))
        assert page.run(wide) == 360
        page.open(f"{served.url}/docs")
        page.wait(lambda: page.run("return document.querySelectorAll('.op').length") > 5)
        page.run("for (const one of [...document.querySelectorAll('.op')].slice(0, 12)) one.open = true")
        assert page.run(wide) == 360


def test_the_api_can_be_tried(page: Browser, served: Running) -> None:
    page.open(f"{served.url}/docs")
    page.wait(lambda: page.run("return document.querySelectorAll('.op').length") > 5)
    page.click('[data-path="/predict/houses"] summary')
    page.click('[data-path="/predict/houses"] form button')
    page.wait(lambda: "200 after" in page.text('[data-path="/predict/houses"] [role=status]'))
    page.type("#find", ":classify")
    seen = page.run("return [...document.querySelectorAll('.op')].filter(e => !e.hidden).map(e => e.dataset.path)")
    assert seen == [f"/v1/models/{name}:classify" for name in ("digits", "houses", "bare", "pair")]


def test_a_server_that_asks_for_a_key_is_given_one(window: Browser, zoo: dict[str, Path], tmp_path: Path) -> None:
    keygen(tmp_path / "alice.key", KeygenOptions(type=KeyType.API))
    with servers.running([zoo["affine"]], "--api-keys", "keys.toml", folder=tmp_path) as server:
        window.open(server.url)
        window.wait(lambda: not window.run("return document.getElementById('key').hidden"))
        window.type("#secret", "wrong" + ENTER)
        window.wait(lambda: "not known here" in window.text("#key-trouble"))
        window.run("document.getElementById('secret').value = ''")
        window.type("#secret", (tmp_path / "alice.key").read_text().strip() + ENTER)
        window.wait(lambda: window.text("#title") == "affine")
        window.click("#send")
        assert answered(window)["outputs"]["y"]
        assert '-H "Authorization: Bearer $KEY"' in window.text("#curl")
        window.wait(lambda: "may not see metrics" in window.text("#live"))
    window.complaints()  # of the 401 and 403 that it was answered
