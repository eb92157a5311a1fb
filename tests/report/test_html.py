import base64
import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from interp.errors import UserError
from interp.files.documents import write_atomically
from interp.report import write_report
from interp.report.page import inline_script, script_json
from tests.report.pages import Page

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction"}


@pytest.fixture(scope="module")
def page(reported_run: Path) -> Page:
    return Page((reported_run / "report.html").read_text(encoding="utf-8"))


def test_the_report_is_one_small_file(run_directory: Path) -> None:
    before = {path.name for path in run_directory.iterdir()}
    path = write_report(run_directory)
    assert path == run_directory / "report.html"
    assert path.stat().st_size < 6_000_000
    assert {path.name for path in run_directory.iterdir()} - before == {"report.html"}
    first = path.read_bytes()
    assert write_report(run_directory).read_bytes() == first


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in LOADING & set(attributes):
            assert tag == "a"
            assert str(attributes[name]).startswith("#")
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_the_policy_lets_only_the_own_scripts_run(page: Page) -> None:
    policy = page.policy()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(run) == 4
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    # Besides the four scripts (plotly, figures, tables, filters) there are only blocks of JSON.
    assert sum("type" not in attributes for attributes, _ in page.scripts) == 4
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert('x')</script>" in page.shown
    assert "</script><img src=x onerror=alert(1)>" in page.shown


def test_figures_hold_no_markup_but_the_hover_breaks(page: Page) -> None:
    for attributes, text in page.scripts:
        if attributes.get("type") == "application/json":
            assert not set("<>&") & set(text)
    labels = page.figures()["data-templates"]["data"][0]["x"]
    assert labels[1] == "&lt;script&gt;alert('x')&lt;/script&gt;"


def test_every_figure_has_its_place(page: Page) -> None:
    places = {str(a["data-figure"]) for _, a in page.tags if "data-figure" in a}
    assert places == set(page.figures())
    assert {"data-heatmap-0", "data-heatmap-1", "data-curve", "data-null-0"} <= places
    assert {"data-null-1", "data-templates", "data-layers-0"} <= places


def test_hover_numbers_in_the_page_are_those_of_the_table(page: Page, reported_run: Path) -> None:
    table = pd.read_csv(reported_run / "heads.csv")
    sites = list(table["site"].unique())
    for row in table.to_dict("records"):
        cells = page.figures()[f"data-heatmap-{sites.index(row['site'])}"]["data"][0]
        hover = cells["customdata"][row["layer"]][row["head"]]
        assert hover[:3] == [row["effect"], row["ci_low"], row["ci_high"]]
        assert hover[3] == (None if pd.isna(row["q_value"]) else row["q_value"])
        assert hover[4] == row["rank"]


def test_the_heads_table_holds_every_row(page: Page, reported_run: Path) -> None:
    rows = [
        attributes for tag, attributes in page.tags if tag == "tr" and "data-layer" in attributes
    ]
    assert len(rows) == 8
    assert sum("data-selected" in attributes for attributes in rows) == 3
    assert sum("data-significant" in attributes for attributes in rows) == 4
    values = {
        attributes["data-value"] for tag, attributes in page.tags if "data-value" in attributes
    }
    effects = pd.read_csv(reported_run / "heads.csv")["effect"]
    assert {str(effect) for effect in effects} <= values


def test_answers_mark_the_object_and_the_names(reported_run: Path) -> None:
    source = (reported_run / "report.html").read_text(encoding="utf-8")
    assert "the capital of <mark>Guinea</mark>?" in source
    assert re.search(r'<span class="names-true"[^>]*>Papua New Guinea</span>', source)
    assert re.search(r'<span class="names-false"[^>]*>guinea</span>', source)


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("settings.csv", "curve"),
        ("null.csv", "null"),
        ("generations.jsonl", "answers"),
        ("evaluation.json", "comparison"),
    ],
)
def test_a_missing_file_leaves_out_its_section(
    run_directory: Path, page: Page, name: str, section: str
) -> None:
    assert section in page.ids()
    (run_directory / name).unlink()
    left = Page(write_report(run_directory).read_text(encoding="utf-8"))
    assert section not in left.ids()
    assert {"summary", "effects", "heads", "manifest"} <= left.ids()
    links = {str(a["href"])[1:] for tag, a in left.tags if tag == "a"}
    assert links <= left.ids()


def test_a_run_that_was_only_located_has_a_report(run_directory: Path) -> None:
    for path in run_directory.iterdir():
        if path.name not in ("manifest.json", "heads.csv"):
            path.unlink()
    page = Page(write_report(run_directory).read_text(encoding="utf-8"))
    assert "4 of 8 head effects are significant" in page.shown
    assert "not been evaluated" in page.shown


def test_a_malformed_file_leaves_the_old_report(run_directory: Path) -> None:
    path = write_report(run_directory)
    before = path.read_bytes()
    (run_directory / "evaluation.json").write_text('{"splits": {"held_out": 3}}')
    with pytest.raises(UserError, match=r"splits\.held_out must be an object"):
        write_report(run_directory)
    assert path.read_bytes() == before
    assert not list(run_directory.glob(".*"))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(tmp_path / "report.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_long_answers_are_cut_and_lone_surrogates_survive(run_directory: Path) -> None:
    path = run_directory / "generations.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    path.write_text(json.dumps({**row, "baseline": "word " * 1000 + "END\ud800"}))
    source = write_report(run_directory).read_text(encoding="utf-8")
    assert "[…]" in source
    assert "END" not in source.split("<main>")[1].split("<script>")[0]


def test_script_texts_cannot_end_their_element() -> None:
    hostile = json.dumps({"a": "</script><!--&\u2028"}, ensure_ascii=False)
    escaped = script_json(hostile)
    assert not set("<>&\u2028") & set(escaped)
    assert json.loads(escaped) == json.loads(hostile)
    assert inline_script("a\r\nb\rc") == "a\nb\nc"
    with pytest.raises(ValueError, match="end tag"):
        inline_script("'</SCRIPT>'")
