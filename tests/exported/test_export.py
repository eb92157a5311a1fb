"""A directory that is exported and loaded again, on a plain transformers model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import interp
import interp.commands.export as export_module
from interp.attached import attach
from interp.cli import main
from interp.commands.ask import AskSettings, ask_each, open_asked, source_of
from interp.commands.export import ExportSettings, export_run
from interp.commands.in_order import Unasked
from interp.errors import UserError
from interp.exported import load_exported, read_export
from interp.exported.folder import write_export
from interp.heads import HeadSet
from interp.models import HookedModel
from interp.models.plain import load_plain
from interp.premises.question_list import RawQuestion
from interp.runs.shards import digest_of
from probes.detector.detector import PremiseDetector
from tests.exported.conftest import CHAT_HEADS, ask, origin_of
from tests.fixtures import PLANTED_HEADS

QUESTIONS = ["Why is city3 the capital of land5?", "When did city4 become the capital of land4?"]


def test_told_where_it_is_the_constraint_of_the_run(
    run: Path, base: Path, planted: HookedModel, tmp_path: Path, capsys: Any
) -> None:
    """The command line, a model with its weights beside it, and the end of the constraint."""
    to = tmp_path / "deep" / "exported"
    main(["export", str(run), "--to", str(to), "--weights"])
    assert f"exported: {to}" in capsys.readouterr().out.replace("\n", "")
    model, tokenizer = load_exported(to, false_object=["land5", None], device="cpu")
    heads = HeadSet((PLANTED_HEADS["attention"],), "attention")
    expected = interp.generate(
        planted, QUESTIONS, heads=heads, false_object=["land5", "land4"], max_new_tokens=1
    )
    assert ask(model, tokenizer, *QUESTIONS) == expected == ["land3", "land4"]
    model.attached.detach()
    assert ask(model, tokenizer, *QUESTIONS) == ["land5", "land4"]
    for path in base.glob("*.safetensors"):
        assert (to / "model" / path.name).read_bytes() == path.read_bytes()


def test_with_a_detector(exported: Path, chat_run: Path) -> None:
    """The same logits as attaching heads and detector by hand; no words are given."""
    model, tokenizer = load_exported(exported, device="cpu")
    plain, _ = load_exported(exported, device="cpu", at=[None])
    plain.attached.detach()
    heads = HeadSet(tuple((layer, head) for layer, head in CHAT_HEADS), "attention")
    prompt = interp.models.render_chat(tokenizer, "Why is Paris the capital of Germany?").text
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        free, found = plain(ids).logits, model(ids).logits
        detector = PremiseDetector.load(chat_run / "detector")
        with attach(plain, tokenizer, heads, gate="probe", detector=detector):
            torch.testing.assert_close(found, plain(ids).logits)
    assert float((found - free).abs().max()) > 1e-3


def test_nothing_of_transformer_lens_is_imported(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "exported"
    export_run(run, to, ExportSettings(weights=True), progress=False)
    code = (
        "import sys, interp\n"
        f"model, tokenizer = interp.load_exported({str(to)!r}, false_object='land5')\n"
        f"text = interp.models.render_chat(tokenizer, {QUESTIONS[0]!r}).text\n"
        "ids = tokenizer(text, return_tensors='pt')['input_ids']\n"
        "out = model.generate(ids, max_new_tokens=1, do_sample=False)\n"
        "print(tokenizer.decode(out[0, -1:]))\n"
        "unused = ('transformer_lens', 'scipy.stats', 'sklearn.linear_model')\n"
        "assert not [name for name in sys.modules if name.startswith(unused)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["land3"]


def test_the_card_and_what_the_files_say(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    export_run(run, to, ExportSettings(), progress=False)
    text = (to / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["tags"][0] == "faithlens"
    assert "base_model" not in yaml.safe_load(front)  # a directory is no name on the hub
    assert "0.75 \\[0.65, 0.85\\]" in body
    assert str(run.parent) not in text  # of the machine, only the model's name
    origin = origin_of(to / "intervention.yaml")
    assert origin.fingerprint == read_export(to).model["fingerprint"]
    assert origin.model == Path(read_export(to).model["spec"]).name  # no machine's directories
    assert (origin.n_layers, origin.n_heads) == (3, 4)
    assert origin.found["searched"] == ["planted"]
    assert origin.scores[0]["effect"] > 1
    assert origin.stability["jaccard"][0] > origin.stability["chance"]
    assert "torch" in origin.versions


def test_text_of_strangers_is_text(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    path = copied / "evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chosen_by"] = "<img src=x>\n---\n# [here](http://x)"
    path.write_text(json.dumps(content), encoding="utf-8")
    export_run(copied, tmp_path / "to", ExportSettings(), progress=False)
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert "<img" not in card
    assert "\\# \\[here\\]" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("intervention.yaml", "intervention.yaml was changed after the export"),
        ("detector/detector.json", "detector.json was changed after the export"),
        ("README.md", "README.md was changed after the export"),
        ("export.json", "export.json was changed after it was written"),
        (
            "-detector/detector.safetensors",
            "is not whole: detector/detector.safetensors is missing",
        ),
        ("-export.json", "is no exported directory: it has no export.json"),
        ("-", "nowhere is no exported directory"),
    ],
)
def test_what_was_changed_is_refused(exported: Path, change: str, message: str) -> None:
    if change == "-":
        exported = exported / "nowhere"
    elif change.startswith("-"):
        (exported / change[1:]).unlink()
    else:
        path = exported / change
        path.write_text(path.read_text(encoding="utf-8").replace("4", "5"), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_exported(exported)
    assert "\n" not in str(caught.value)


def test_a_file_outside_the_directory_is_not_read(exported: Path) -> None:
    content = read_export(exported).content
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        (exported / "export.json").unlink()
        write_export(exported, {k: v for k, v in content.items() if k not in ("files", "sha256")})
        path = exported / "export.json"
        named = json.loads(path.read_text(encoding="utf-8"))
        named["files"][name] = "0" * 64
        del named["sha256"]
        named["sha256"] = digest_of(named)
        path.write_text(json.dumps(named), encoding="utf-8")
        with pytest.raises(UserError, match="named"):
            read_export(exported)


def test_a_head_that_the_model_lacks(exported: Path) -> None:
    """Also where the hashes are right: whoever wrote the file may have been wrong."""
    content = dict(read_export(exported).content)
    path = exported / "intervention.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    given["heads"][0]["heads"] = [[9, 0]]
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    (exported / "export.json").unlink()
    write_export(exported, {k: v for k, v in content.items() if k not in ("files", "sha256")})
    with pytest.raises(UserError, match=r"head \(9, 0\) does not exist"):
        load_exported(exported, device="cpu")


def test_another_model_only_by_name(
    exported: Path,
    chat_run: Path,
    hf_factory: Callable[..., Any],
    chat_tokenizer: Any,
    tmp_path: Path,
) -> None:
    """A relative has other weights, and layers and heads that fit; nothing else does."""
    relative, small = tmp_path / "relative", tmp_path / "small"
    for folder, more in ((relative, {"seed": 1}), (small, {"num_hidden_layers": 2})):
        hf_factory("llama", chat_tokenizer, **more).save_pretrained(folder)
        chat_tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"were found on the model .*, not on .*--transfer"):
        load_exported(exported, model=relative, device="cpu")
    model, tokenizer = load_exported(exported, model=relative, transfer=True, device="cpu")
    assert model.attached.is_attached
    assert len(ask(model, tokenizer, "Why is Paris in Germany?")) == 1  # the detector reads it
    with pytest.raises(UserError, match="3 layers of 4 heads do not fit one with 2 layers of 4"):
        load_exported(exported, model=small, transfer=True, device="cpu")
    to = tmp_path / "to"
    with pytest.raises(UserError, match="is not the model that the run was made with"):
        export_run(chat_run, to, ExportSettings(), model=str(relative))
    with pytest.raises(UserError, match="has 2 layers of 4 heads, the run's model 3 of 4"):
        export_run(chat_run, to, ExportSettings(transfer=True), model=str(small))
    export_run(chat_run, to, ExportSettings(transfer=True), model=str(relative), progress=False)
    assert "nothing was measured" in (to / "README.md").read_text(encoding="utf-8")
    model, _ = load_exported(to, device="cpu")  # who exported it has said so
    assert model.attached.is_attached
    with pytest.raises(UserError, match=r"was exported for the model .*relative.*, not for"):
        load_exported(to, model=read_export(exported).model["spec"], device="cpu")


def test_a_base_model_of_a_relative_path_is_found_from_anywhere(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "to"
    monkeypatch.chdir(base.parent)
    export_run(run, to, ExportSettings(), model=base.name, progress=False)
    monkeypatch.chdir(tmp_path)
    model, _ = load_exported(to, false_object="land5", device="cpu")
    assert model.attached.is_attached


def test_a_base_model_that_is_elsewhere(run: Path, base: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    path = copied / "manifest.json"
    text = path.read_text(encoding="utf-8").replace(str(base), str(tmp_path / "gone"))
    path.write_text(text, encoding="utf-8")
    export_run(copied, to, ExportSettings(), progress=False)
    with pytest.raises(UserError, match=r"the base model .*gone.* is not found .*\(model=\)"):
        load_exported(to, false_object="land5")
    model, _ = load_exported(to, model=base, false_object="land5", device="cpu")
    assert model.attached.is_attached
    plain, tokenizer = load_exported(to, model=base, at=[None], device="cpu")
    plain.attached.detach()
    with pytest.raises(UserError, match="is an exported directory: load it with"):
        attach(plain, tokenizer, to, false_object="land5")
    with attach(plain, tokenizer, to / "intervention.yaml", false_object="land5"):
        assert ask(plain, tokenizer, QUESTIONS[0]) == ["land3"]
    with pytest.raises(UserError, match="say where they are"):
        load_exported(to, model=base, device="cpu")


def test_runs_and_targets_that_cannot_be(
    run: Path, planted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine", encoding="utf-8")
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "evaluation.json").unlink()
    for of, to, settings, message in (
        (run, full, ExportSettings(), "holds something already"),
        (tmp_path / "none", tmp_path / "a", ExportSettings(), "is not a run"),
        (bare, tmp_path / "a", ExportSettings(), "has no evaluation.json"),
        (run, tmp_path / "a", ExportSettings(bake=True), "site 'attention' cannot be baked"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            export_run(of, to, settings)
        assert "\n" not in str(caught.value)
    wrong: Any
    for wrong in ({"bake": True, "weights": True}, {"bake": True, "gate": "probe"}):
        with pytest.raises(UserError, match="leave --"):
            ExportSettings(**wrong)

    def stop(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "render_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, tmp_path / "a", ExportSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "full"]
    assert (full / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_a_run_without_a_detector(chat_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FAITHLENS_CACHE", str(tmp_path / "cache"))
    copied = tmp_path / "run"
    shutil.copytree(chat_run, copied)
    shutil.rmtree(copied / "detector")
    with pytest.raises(UserError, match="there is no detector for the model"):
        export_run(copied, tmp_path / "to", ExportSettings(gate="probe"))


def test_an_exported_directory_is_asked(exported: Path) -> None:
    source = source_of(str(exported), None)
    assert (source.run, source.detector) == (None, exported / "detector")
    hf_model, tokenizer = load_plain(source.spec, device="cpu")
    asked = open_asked(hf_model, tokenizer, source, settings=AskSettings(max_new_tokens=2))
    asking = [RawQuestion(QUESTIONS[0])]
    (outcome,) = ask_each(asked, asking, AskSettings(max_new_tokens=2))
    assert not isinstance(outcome, Unasked)
    assert outcome[1].question == QUESTIONS[0]
    assert outcome[1].fired  # this detector fires on everything
