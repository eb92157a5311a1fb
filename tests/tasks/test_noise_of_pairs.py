"""``patch_pairs`` and ``interp patch`` with noise on a span of the clean texts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from interp.commands.patch import PatchSettings, patch_run
from interp.errors import UserError
from interp.files.documents import write_jsonl
from interp.models import HookedModel
from interp.patching import trace_noise
from interp.tasks import Pair, Pairs, encode_pairs, patch_pairs

NOISE: Any = {"source": "noise", "component": "resid_post", "draws": 2}


def pairs_with(span: str | None) -> Pairs:
    def pair(number: int) -> Pair:
        texts = [f"Why is city{number} the capital of land{number + i}?" for i in (1, 2)]
        spans = {} if span is None else {span: ((7, 12), (7, 12))}
        return Pair(texts[0], texts[1], f"land{number + 1}", f"land{number + 2}", spans=spans)

    return Pairs(tuple(pair(number) for number in range(2)))


@pytest.mark.parametrize("span", ["subject", "city"])
def test_pairs_are_traced_as_prompts_are(span: str, planted: HookedModel) -> None:
    encoded = encode_pairs(planted.tokenizer, pairs_with(span))
    found = patch_pairs(planted, encoded, progress=False, **NOISE)
    spans = encoded.spans[span][0]
    expected = trace_noise(planted, encoded.clean, encoded.metric, spans, draws=2, progress=False)
    assert torch.equal(found.values.nan_to_num(), expected.values.nan_to_num())
    assert found.axes == ("prompt", "layer", "span")
    each = patch_pairs(planted, encoded, positions="each", progress=False, **NOISE)
    assert each.axes == ("prompt", "layer", "position")


def test_a_run_with_noise(planted: HookedModel, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [pair.row() for pair in pairs_with("subject")])
    settings = PatchSettings(pairs=str(path), **NOISE)
    assert not settings.sliced
    found = patch_run(planted, settings, tmp_path / "run", progress=False)
    again = patch_run(planted, settings, tmp_path / "run", progress=False)
    assert torch.equal(found.values.nan_to_num(), again.values.nan_to_num())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "values from noise" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"component": "z"}, "noise is traced in"),
        ({"method": "attribution"}, "by method 'exact'"),
    ],
)
def test_settings_that_do_not_go_together_are_told(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PatchSettings(**{**NOISE, **changes})


def test_pairs_without_a_span_are_told(planted: HookedModel) -> None:
    with pytest.raises(UserError, match="noise needs a span"):
        patch_pairs(planted, pairs_with(None), progress=False, **NOISE)
