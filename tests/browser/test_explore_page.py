"""The page of ``interp explore``, used as its reader would."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import expect
from tornado.ioloop import IOLoop

from interp.explore import open_run
from interp.explore.serve import address_of, make_server
from interp.figures.tables import where
from interp.interventions import Detection
from interp.models import HookedModel
from probes.detector.questions import tokenize_question

DESKTOP, PHONE = 1280, 390
HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(1)>"


class Finder:
    """Takes the first ``land…`` to be false, unless it is the city's own."""

    def detect(
        self, model: Any, questions: Sequence[str], *, system: Any = None, progress: bool = True
    ) -> tuple[Detection, ...]:
        return tuple(self._one(model, text) for text in questions)

    def _one(self, model: Any, text: str) -> Detection:
        found = re.search(r"land(\d+)", text)
        city = re.search(r"city(\d+)", text)
        if found is None or (city is not None and city[1] == found[1]):
            return Detection(False, 0.25)
        chars = found.span()
        return Detection(
            True, 0.75, chars, tokenize_question(model.tokenizer, text).tokens_at(chars)
        )


@pytest.fixture(scope="module")
def address(planted: HookedModel, planted_run: Path) -> Iterator[str]:
    """The page, served from a thread of its own."""
    explorer = open_run(planted_run, model=planted, detector=Finder())
    explorer.max_new_tokens = 2
    ready, found = threading.Event(), {}

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        loop = IOLoop.current()
        server = make_server(explorer)
        server.start()
        found.update(address=address_of(server), loop=loop, server=server)
        ready.set()
        loop.start()
        server.stop()
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(30)
    yield found["address"]
    found["loop"].add_callback(found["loop"].stop)
    thread.join(30)
    assert not thread.is_alive()


def opened(visit: Callable[..., Any], address: str, width: int = DESKTOP) -> Any:
    """The page when its heat map is drawn."""
    there = visit(address, width)
    there.page.wait_for_selector(".js-plotly-plot .hoverlayer", state="attached")
    there.page.wait_for_timeout(300)  # the map takes the page's width once more
    return there


@pytest.fixture(scope="module")
def desktop(address: str, visit: Callable[..., Any]) -> Any:
    """One page for all tests at desktop width: Panel's scripts take a while to load."""
    return opened(visit, address)


def cell(page: Any, layer: int, head: int) -> tuple[float, float]:
    """The middle of a cell of the heat map, 3 layers of 4 heads."""
    page.locator(".js-plotly-plot").scroll_into_view_if_needed()
    box = page.locator(".js-plotly-plot .nsewdrag").bounding_box()
    return (
        box["x"] + box["width"] / 4 * (head + 0.5),
        box["y"] + box["height"] / 3 * (layer + 0.5),
    )


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_question_is_answered_with_and_without(
    address: str, desktop: Any, visit: Callable[..., Any], width: int
) -> None:
    there = desktop if width == DESKTOP else opened(visit, address, width)
    page = there.page
    page.get_by_label("Site").select_option("attention")
    page.get_by_label("Chosen").fill("1.2")
    page.get_by_label("Chosen").press("Enter")
    page.get_by_label("Question").fill("Why is city3 the capital of land5?")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".explore")
    assert page.locator(".question mark").inner_text() == "land5"
    before, after = page.locator(".answer-text").all_inner_texts()
    assert before.startswith("land5")
    assert after.startswith("land3")
    assert page.locator(".names-true").count() >= 2  # in the answer and in the key
    assert "found by the detector (probability 0.75)" in page.locator(".card-note").inner_text()
    assert re.search(r"\d\.\d s", page.locator(".answer-name").first.inner_text())
    assert there.overflow() <= 0


def shows(field: Any, heads: list[str]) -> None:
    """Wait until a field's text names these heads, in order."""
    named = r"\s+".join(map(re.escape, heads))
    expect(field).to_have_value(re.compile(rf"^\s*{named}\s*$"), timeout=20_000)


def hover(page: Any, layer: int, head: int) -> None:
    """Move the mouse to a cell until the figure shows its text.

    A move while the figure is drawn is lost, and its cells move when it is laid out again.
    """
    for attempt in range(60):
        x, y = cell(page, layer, head)
        page.mouse.move(x + attempt % 2, y)
        page.wait_for_timeout(500)
        shown = page.locator(".hoverlayer .hovertext").all_text_contents()
        named = any(f"layer {layer}, head {head}" in text for text in shown)
        if named and cell(page, layer, head) == (x, y):
            return
    raise AssertionError(f"the text of ({layer}, {head}) is not shown under the mouse")


def click(page: Any, layer: int, head: int) -> None:
    """Click a cell when it is under the mouse for the figure too, and not as a double click."""
    hover(page, layer, head)
    page.mouse.down()
    page.mouse.up()


def test_clicks_and_the_slider_choose_heads(planted_run: Path, desktop: Any) -> None:
    page = desktop.page
    chosen = page.get_by_label("Chosen")
    heads = pd.read_csv(planted_run / "heads.csv")
    rows = where(heads, heads["site"] == page.get_by_label("Site").input_value())
    rows = rows.sort_values("rank")
    ranked = [f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)]
    first = chosen.input_value().split()
    click(page, 2, 3)
    wanted = [one for one in first if one != "2.3"] + ([] if "2.3" in first else ["2.3"])
    shows(chosen, wanted)
    click(page, 2, 3)
    shows(chosen, first)
    page.locator(".noUi-handle").focus()
    for number in range(len(first) + 1, len(first) + 4):
        page.keyboard.press("ArrowRight")
        shows(chosen, ranked[:number])


def test_hovering_shows_the_numbers_of_the_table(planted_run: Path, desktop: Any) -> None:
    page = desktop.page
    heads = pd.read_csv(planted_run / "heads.csv").set_index(["site", "layer", "head"])
    row = heads.loc[(page.get_by_label("Site").input_value(), 1, 2)]
    hover(page, 1, 2)
    text = page.locator(".hoverlayer").text_content().replace("−", "-")
    assert "layer 1, head 2" in text
    shown = [float(one) for one in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
    for name in ("effect", "ci_low", "ci_high"):
        assert any(one == pytest.approx(row[name], rel=6e-3, abs=1e-12) for one in shown)


def test_hostile_questions_and_mistakes_are_text(desktop: Any) -> None:
    page = desktop.page
    ask_button = page.get_by_role("button", name="Ask")
    page.get_by_label("Question").fill("")
    ask_button.click()
    page.wait_for_selector("text=the question is empty")
    page.get_by_label("Question").fill(f"Why is city3 in land5? {HOSTILE}")
    ask_button.click()
    page.wait_for_selector(".explore")
    assert HOSTILE in page.locator(".question").inner_text()
    page.get_by_label("Question").fill(f"{HOSTILE} city3 land3")
    ask_button.click()
    page.wait_for_selector("text=finds no false premise")
    assert "not asked again" in page.locator(".answer-name").last.inner_text()
    page.get_by_label("Words that may be false").fill(HOSTILE * 2)
    ask_button.click()
    page.wait_for_selector("text=is not found in the question")
    assert HOSTILE in page.locator(".notice").inner_text()
    page.get_by_label("Chosen").fill(HOSTILE)
    page.get_by_label("Chosen").press("Enter")
    page.wait_for_selector("text=is no head")
    assert page.locator('img[src="x"]').count() == 0
