"""The report of a real run, as its reader meets it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import load_run
from interp.commands.patch import PatchSettings, patch_run
from interp.models import HookedModel
from interp.report import write_report

DESKTOP, PHONE = 1280, 390
HOSTILE = "<script>alert('x')</script></script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(planted: HookedModel, planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run with its report; one question, one answer and the command are hostile."""
    run = Path(shutil.copytree(planted_run, tmp_path_factory.mktemp("page") / "run"))
    _, split, effects = load_run(run)
    settings = EvaluateSettings(heads=1.0, counts=(1, 2))
    evaluate_run(planted, split, effects, settings, run, progress=False)
    lines = (run / "generations.jsonl").read_text("utf-8").splitlines()
    row = json.loads(lines[0])
    name = row["question"][slice(*row["object_span"])]
    row["question"] = f"{HOSTILE} {name}?"
    row["object_span"] = [len(HOSTILE) + 1, len(HOSTILE) + 1 + len(name)]
    row["baseline"] = f"Well, {HOSTILE}"
    (run / "generations.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]), "utf-8")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, "command": HOSTILE}), "utf-8")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def heads(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "heads.csv")


@pytest.fixture(scope="module")
def desktop(run: Path, visit: Callable[..., Any]) -> Any:
    """One page for all tests at desktop width."""
    return visit(run / "report.html")


def column(page: Any, number: int) -> list[float]:
    """The exact values of a column of the heads table, of the rows that are shown, from the top."""
    return page.locator("#head-table tbody tr:visible").evaluate_all(
        "(rows, n) => rows.map((row) => Number(row.cells[n].dataset.value ??"
        " row.cells[n].textContent))",
        number,
    )


def column_texts(page: Any, name: str) -> list[str]:
    """What the cells of a column of the units table say, from the top."""
    names = page.locator("#units thead th").all_inner_texts()
    number = [one.split()[0] for one in names].index(name) + 1
    return page.locator(f"#units tbody tr > :nth-child({number})").all_inner_texts()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_report_is_whole_without_a_network(
    run: Path, desktop: Any, visit: Callable[..., Any], width: int
) -> None:
    there = desktop if width == DESKTOP else visit(run / "report.html", width)
    page = there.page
    n_figures = page.locator(".plot").count()
    assert n_figures >= 7
    assert (
        page.locator(".plot .cartesianlayer .subplot").count() >= n_figures
    )  # each has drawn its axes
    for section in ("Summary", "Comparison", "Head effects", "Answers before", "Heads", "Manifest"):
        assert page.get_by_role("heading", name=section).first.is_visible()
    assert there.overflow() <= 0


def test_hovering_a_cell_shows_the_numbers_of_the_table(heads: pd.DataFrame, desktop: Any) -> None:
    page = desktop.page
    for number, site in enumerate(heads["site"].unique()):
        rows = heads[heads["site"] == site].set_index(["layer", "head"])
        place = page.locator(f"#plot-heatmap-{number}")
        place.scroll_into_view_if_needed()
        box = place.locator(".nsewdrag").bounding_box()
        for layer, head in ((0, 1), (1, 2), (2, 3)):
            page.mouse.move(
                box["x"] + box["width"] / 4 * (head + 0.5),
                box["y"] + box["height"] / 3 * (layer + 0.5),
            )
            page.wait_for_function(
                "([id, text]) => document.querySelector(`#${id} .hoverlayer`)"
                ".textContent.includes(text)",
                arg=[f"plot-heatmap-{number}", f"layer {layer}, head {head}"],
            )
            text = place.locator(".hoverlayer").text_content().replace("−", "-")
            shown = [float(one) for one in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
            for name in ("effect", "ci_low", "ci_high", "q_value"):
                value = rows.at[(layer, head), name]
                assert any(one == pytest.approx(value, rel=6e-3, abs=1e-12) for one in shown)


def test_sorting_by_a_column_and_back(heads: pd.DataFrame, desktop: Any) -> None:
    page = desktop.page
    button = page.locator('#head-table button:text-is("effect")')
    button.click()
    assert column(page, 4) == sorted(heads["effect"])
    button.click()
    assert column(page, 4) == sorted(heads["effect"], reverse=True)
    assert page.locator('#head-table th[aria-sort="descending"]').count() == 1


def test_filters_leave_the_rows_that_were_asked_for(heads: pd.DataFrame, desktop: Any) -> None:
    page = desktop.page
    page.get_by_role("spinbutton", name="Layer").fill("1")
    assert len(column(page, 0)) == (heads["layer"] == 1).sum()
    page.locator("#head-site").select_option("attention")
    kept = heads[(heads["layer"] == 1) & (heads["site"] == "attention")]
    assert sorted(column(page, 4)) == sorted(kept["effect"])
    page.locator("#head-filter").select_option("selected")
    assert len(column(page, 0)) == kept["selected"].sum()
    assert page.locator("#head-count").text_content() == f"{kept['selected'].sum()} rows"
    page.get_by_role("spinbutton", name="Layer").fill("")
    page.locator("#head-site").select_option("all")
    page.locator("#head-filter").select_option("all")
    assert len(column(page, 0)) == len(heads)


def test_hostile_text_is_shown_as_text(desktop: Any) -> None:
    page = desktop.page
    card = page.locator(".card").first
    assert HOSTILE in card.locator(".question").inner_text()
    assert HOSTILE in card.locator(".answer-text").first.inner_text()
    assert HOSTILE in page.locator("#manifest").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("script:not([type])").count() == 4


def test_the_policy_forbids_what_the_page_did_not_bring(desktop: Any) -> None:
    there = desktop
    there.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'window.broken = true'}))"
    )
    assert there.page.evaluate("window.broken") is None
    assert any("Content Security Policy" in fault for fault in there.faults)
    there.faults.clear()


def test_the_page_of_a_patching_run(
    tiny_llama: HookedModel, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    pair = {
        "clean": "Paris is in",
        "corrupted": "Rome is in",
        "answer": " France",
        "wrong_answer": " Italy",
    }
    rows = [{**pair, "group": f"{HOSTILE} {i}"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = PatchSettings(pairs=str(tmp_path / "pairs.jsonl"))
    patch_run(tiny_llama, settings, tmp_path / "run", progress=False)
    there = visit(tmp_path / "run" / "report.html")
    page = there.page
    assert page.locator(".plot .main-svg").count() > 0
    for width in (PHONE, DESKTOP):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)  # figures take the new width a moment later
        assert there.overflow() <= 0
    rows = page.locator("#units tbody tr:visible")
    page.locator('#units button:text-is("effect")').click()
    shown = [float(one.replace("−", "-")) for one in column_texts(page, "effect")]
    assert shown == sorted(shown)
    n_rows = rows.count()
    page.get_by_label("Rows with").fill("no such text")
    assert rows.count() == 0
    page.get_by_label("Rows with").fill("")
    assert rows.count() == n_rows
