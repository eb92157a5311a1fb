"""The site is built strictly, asks the network for nothing, and says what the program says."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import cli_reference
from scripts.literal_blocks import as_markdown

ROOT = Path(__file__).parent.parent.parent
PACKAGES = (
    *("interp", "interp.models", "interp.premises", "interp.patching", "interp.heads"),
    *("interp.interventions", "interp.evaluation", "interp.tasks", "interp.moelora"),
    *("interp.experts", "interp.explore", "interp.report", "probes"),
)
# What a browser would fetch by itself: not links that somebody follows.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=[\"']?(?P<src>[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|icon|preconnect|prefetch|manifest))"
    r"[^>]*\bhref=[\"']?(?P<href>[^\"'\s>]+)"
    r"|url\([\"']?(?P<url>(?:https?:)?//[^\"')]+)"
    r"|@import\s+[\"'](?P<imported>[^\"']+)",
    flags=re.IGNORECASE,
)


def fetched(text: str) -> list[str]:
    """Addresses from which a page or a style sheet takes something by itself."""
    return [next(filter(None, found.groups())) for found in _FETCHED.finditer(text)]


def test_what_a_page_fetches_is_found() -> None:
    text = (
        '<a href="https://a.org">x</a><script src="https://b.org/x.js"></script>'
        '<link rel="stylesheet" href="//c.org/x.css"><img src="here.png">'
        "<style>@import 'https://d.org/x.css'; a {background: url(https://e.org/x.png)}</style>"
    )
    assert fetched(text) == [
        *("https://b.org/x.js", "//c.org/x.css", "here.png"),
        *("https://d.org/x.css", "https://e.org/x.png"),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def test_every_page_is_built_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {str(one.relative_to(site).with_suffix("")) for one in site.rglob("*.html")} - {"404"}
    sources = (ROOT / "docs").rglob("*.md")
    assert pages == {str(one.relative_to(ROOT / "docs").with_suffix("")) for one in sources}
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        outside = [one for one in fetched(file.read_text("utf-8")) if "//" in one]
        assert not outside, f"{file.relative_to(site)} fetches {outside}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_holds_the_public_names(site: Path, package: str) -> None:
    page = site / "reference" / f"{package.rpartition('.')[2]}.html"
    text = page.read_text(encoding="utf-8")
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    # A function behind a module of the same name stands under the name of its own module.
    missing = [
        name
        for name, value in public.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(("interp.", "probes."))  # HookedModel is an alias
        and f'id="{package}.{name}"' not in text
        and f'id="{value.__module__}.{name}"' not in text
    ]
    assert len(public) > 3
    assert not missing


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "stylesheets", tmp_path / "docs" / "stylesheets")
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    settings = settings.replace(
        "scripts/literal_blocks.py", str(ROOT / "scripts/literal_blocks.py")
    )
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode != 0
    assert "nowhere.md" in built.stderr


def test_the_command_line_reference_is_in_step() -> None:
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.page(), (
        "run python scripts/cli_reference.py"
    )


def test_the_command_line_reference_has_every_command() -> None:
    text = cli_reference.page()
    for words in cli_reference.commands():
        assert f"\n## {' '.join(('interp', *words))}\n" in text
    assert "usage: interp moelora analyze" in text
    assert not re.search(r"/(root|home|tmp|work)\b|\x1b", text)


def test_two_colons_become_one() -> None:
    assert as_markdown("Like this::\n\n    x = 1\n") == "Like this:\n\n    x = 1\n"
    assert as_markdown("Above.\n\n::\n\n    x = 1\n") == "Above.\n\n\n    x = 1\n"
    assert as_markdown("a[::2] and 1::2 inside") == "a[::2] and 1::2 inside"
