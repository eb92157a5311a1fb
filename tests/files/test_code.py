"""Nothing that is read runs, and nothing that is written leaves its directory."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

import interp
from interp.cli.moelora import moelora
from interp.commands.report import report_run
from interp.errors import UserError
from interp.files.documents import write_atomically, write_table
from interp.models import load_model, resolve
from interp.moelora.load import load_adapter
from interp.moelora.training.pretrained import load_pretrained
from tests.fuzz import run_seeds, seeds

# transformers renames gradient checkpointing; PEFT knows the old names only.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"
)


class Hostile:
    """Pickled, it writes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def folder(
    tmp_path: Path, hf_factory: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A model directory of its own."""
    place = tmp_path / "model"
    hf_factory("llama", chat_tokenizer).save_pretrained(place)
    chat_tokenizer.save_pretrained(place)
    return place


def pickled(folder: Path) -> dict[str, torch.Tensor]:
    """The directory's weights as a pickle file, as older models have them."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return weights


def test_pickle_is_read_only_where_it_is_said(folder: Path, tmp_path: Path) -> None:
    expected = load_model(folder, cache_dir=tmp_path / "cache")
    pickled(folder)
    for read in (load_model, load_pretrained, resolve):
        with pytest.raises(UserError, match=r"pickle files can run code: .*--allow-pickle"):
            read(folder)
    model = load_model(folder, cache_dir=tmp_path / "cache", allow_pickle=True)
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(
        model.original_model(tokens).logits, expected.original_model(tokens).logits
    )
    (converted,) = (tmp_path / "cache" / "models").glob("model-*")
    assert any(converted.glob("*.safetensors"))
    assert not any(converted.glob("*.bin"))


def test_training_and_what_follows_it_read_pickle_where_it_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAITHLENS_CACHE", str(tmp_path / "cache"))
    pickled(folder)
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    for name in ("sums", "more"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = [str(tmp_path / f"{name}.jsonl") for name in ("sums", "more")]
    train = [
        "train",
        "--model",
        str(folder),
        "--data",
        *data,
        "--steps",
        "2",
        "--batch",
        "4",
        "--test-limit",
        "4",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    analyze = [
        "analyze",
        str(tmp_path / "run"),
        "--data",
        *data,
        "--part",
        "both",
        "--least-tokens",
        "9",
        "--draws",
        "19",
        "--token-draws",
        "0",
        "--routers",
        "0",
        "--effects",
        "0",
        "--out",
        str(tmp_path / "analyze"),
    ]
    for words in (train, analyze):
        with pytest.raises(UserError, match="say --allow-pickle"):
            moelora(words, Console(quiet=True))
        moelora([*words, "--allow-pickle"], Console(quiet=True))
    assert (tmp_path / "analyze" / "measures.json").is_file()
    assert "allow_pickle: true" in (tmp_path / "analyze" / "config.yaml").read_text()


def test_even_where_it_is_said_a_pickle_runs_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "hacked"
    for protocol in (0, 2, 4):
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(mark), protocol=protocol))
        with pytest.raises(UserError, match="cannot read the weights"):
            load_model(folder, cache_dir=tmp_path / "cache", allow_pickle=True)
    torch.save({"w": Hostile(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot read the weights"):
        load_model(folder, cache_dir=tmp_path / "cache", allow_pickle=True)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the control: it is a hostile file
    assert mark.exists()


def test_a_pickled_adapter_is_refused_by_name(tmp_path: Path) -> None:
    seeds.adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle file, which can run code"):
        load_adapter(seeds.tiny_hf_model(), tmp_path)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_does_not_run(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "hacked"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "hostile.py").write_text(code)
    settings = json.loads((folder / where).read_text())
    settings["auto_map"] = {
        "AutoConfig": "hostile.Config",
        "AutoModelForCausalLM": "hostile.Model",
        "AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"],
    }
    settings |= {"model_type": "hostile"} if where == "config.json" else {}
    settings |= {"tokenizer_class": "Tokenizer"} if where != "config.json" else {}
    (folder / where).write_text(json.dumps(settings))

    def asked(*_: Any) -> str:
        raise AssertionError("asked at the terminal")

    monkeypatch.setattr("builtins.input", asked)
    for read in (load_model, load_pretrained):
        try:
            read(folder)
        except UserError as error:
            assert "cannot load" in str(error)  # noqa: PT017
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "", "a" * 999, "x\0y"])
def test_an_adapters_name_stays_a_name(name: str, tmp_path: Path) -> None:
    seeds.adapter(tmp_path)
    with pytest.raises(UserError, match="the adapter is named"):
        load_adapter(seeds.tiny_hf_model(), tmp_path, adapter_name=name)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", ".*.*.*.*.*x", "(", "(?P<a>.)(?P<a>.)", "a?a?a?a?a?aaaaa"]
)
def test_a_regex_that_never_ends_is_refused(pattern: str, tmp_path: Path) -> None:
    seeds.adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "target_modules": pattern}))
    with pytest.raises(UserError, match="target_modules is"):
        load_adapter(seeds.tiny_hf_model(), tmp_path)
    path.write_text(json.dumps({**settings, "target_modules": r".*\.(q|v)_proj"}))
    load_adapter(seeds.tiny_hf_model(), tmp_path)


def test_an_adapter_larger_than_its_weights_is_not_made(tmp_path: Path) -> None:
    seeds.adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 10**9}))
    with pytest.raises(UserError, match="ask for rank 3000000000 in all, the weights have 6"):
        load_adapter(seeds.tiny_hf_model(), tmp_path)


def test_a_link_out_of_a_run_is_refused(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    run_seeds.patch_run(run)
    report_run(run)
    (run / "parts").symlink_to(outside)
    with pytest.raises(UserError, match=r"a link that leads out of it \(parts\)"):
        report_run(run)
    (run / "parts").unlink()
    (run / "again.html").symlink_to(run / "report.html")  # inside: no harm
    report_run(run)


def test_writing_does_not_follow_a_link(tmp_path: Path) -> None:
    import os

    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / f".file.{os.getpid()}.part").symlink_to(victim)
    (run / "file").symlink_to(victim)
    write_atomically(run / "file", "theirs")
    assert victim.read_text() == "mine"
    assert (run / "file").read_text() == "theirs"
    assert not (run / "file").is_symlink()
    (run / "effects.safetensors.partial").symlink_to(victim)
    seeds.effects(run)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_no_cell_is_a_formula(start: str, tmp_path: Path) -> None:
    formula = f"{start}cmd|' /C calc'!A0"
    table = pd.DataFrame({formula: [formula, "fine"], "number": [-1.5, 2.0]})
    write_table(tmp_path / "t.csv", table)
    again = pd.read_csv(tmp_path / "t.csv")
    assert list(again["number"]) == [-1.5, 2.0]
    assert all(cell.startswith("'") for cell in (again.columns[0], again.iloc[0, 0]))
    inside = pd.DataFrame({"text": [f"fine\r{formula}", "x"]})
    write_table(tmp_path / "t.csv", inside)
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2


def test_every_csv_is_written_by_the_one_writer() -> None:
    package = Path(interp.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parent / "probes").rglob("*.py")]
    writers = [
        path.name
        for path in sources
        if "to_csv(" in (code := path.read_text()) or "csv.writer" in code
    ]
    assert writers == ["documents.py"]


def test_every_reader_of_models_says_no_remote_code() -> None:
    package = Path(interp.__file__).parent
    for path in package.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in code
        assert "torch.load(" not in code
        for reader in ("AutoTokenizer.from_pretrained", "AutoModelForCausalLM.from_pretrained"):
            for call in code.split(f"{reader}(")[1:]:
                inside = call[: call.index(")")]
                safe = "trust_remote_code=False" in inside or "**safe" in inside
                assert safe or "**location" in inside, path
