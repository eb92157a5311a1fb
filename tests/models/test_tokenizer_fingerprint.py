"""Two tokenizers have one fingerprint exactly if they make the same of every text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from interp.errors import UserError
from interp.models import HookedModel
from interp.models.fingerprint import (
    prompting_fingerprint,
    template_fingerprint,
    tokenizer_fingerprint,
)
from interp.models.folder import read_tokenizer
from tests.fixtures import make_tokenizer


def changed_backend(change: Callable[[dict[str, Any]], None]) -> Any:
    """The usual tokenizer, made again from its description with one thing changed."""
    usual = make_tokenizer()
    content = json.loads(usual.backend_tokenizer.to_str())
    change(content)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    made.chat_template = usual.chat_template
    return made


def swap_two_words(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def leave_a_merge_out(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def begin_with_a_token(content: dict[str, Any]) -> None:
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [0], "tokens": ["<|start|>"]}},
    }


def write_small(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    "change", [swap_two_words, leave_a_merge_out, begin_with_a_token, write_small]
)
def test_what_changes_tokens_changes_it(change: Callable[[dict[str, Any]], None]) -> None:
    usual, changed = make_tokenizer(), changed_backend(change)
    assert tokenizer_fingerprint(changed) != tokenizer_fingerprint(usual)
    assert template_fingerprint(changed) == template_fingerprint(usual)


def test_made_again_it_is_the_same() -> None:
    usual = make_tokenizer()
    assert tokenizer_fingerprint(changed_backend(lambda _: None)) == tokenizer_fingerprint(usual)
    assert len(tokenizer_fingerprint(usual)) == 64


def test_a_tokenizer_that_is_changed_in_place() -> None:
    made = make_tokenizer()
    seen = [tokenizer_fingerprint(made)]
    made.add_tokens([transformers.AddedToken("Paris", single_word=True)])
    seen.append(tokenizer_fingerprint(made))
    made.eos_token = "<|start|>"
    seen.append(tokenizer_fingerprint(made))
    made.backend_tokenizer.decoder = decoders.Fuse()
    seen.append(tokenizer_fingerprint(made))
    made.backend_tokenizer.normalizer = normalizers.NFC()
    seen.append(tokenizer_fingerprint(made))
    made.split_special_tokens = True
    seen.append(tokenizer_fingerprint(made))
    assert len(set(seen)) == len(seen)


def test_how_a_call_padded_and_cut_is_no_part_of_it() -> None:
    made = make_tokenizer()
    before = tokenizer_fingerprint(made)
    made(["Rome", "Paris is the capital"], padding=True, truncation=True, max_length=4)
    made.padding_side = "left"
    assert json.loads(made.backend_tokenizer.to_str())["padding"] is not None
    assert tokenizer_fingerprint(made) == before


def test_saved_read_and_hooked_it_stays_the_same(tiny_llama: HookedModel, tmp_path: Path) -> None:
    made = make_tokenizer()
    made.save_pretrained(tmp_path)
    read = [read_tokenizer(tmp_path, spec="tiny") for _ in range(2)]
    assert tokenizer_fingerprint(read[0]) == tokenizer_fingerprint(read[1])
    assert tokenizer_fingerprint(tiny_llama.tokenizer) == tokenizer_fingerprint(made)


def test_the_chat_template_has_its_own() -> None:
    chat, plain = make_tokenizer(), make_tokenizer(chat=False)
    assert template_fingerprint(plain) is None
    assert tokenizer_fingerprint(chat) == tokenizer_fingerprint(plain)
    assert prompting_fingerprint(chat) != prompting_fingerprint(plain)
    other = make_tokenizer()
    other.chat_template = f"{chat.chat_template} "
    assert template_fingerprint(other) != template_fingerprint(chat)
    assert prompting_fingerprint(other) != prompting_fingerprint(chat)


class SlowTokenizer:
    """A tokenizer without a fast backend, whose merges are in a file that it writes."""

    special_tokens_map = {"eos_token": "<end>"}  # noqa: RUF012

    def __init__(self, merges: str) -> None:
        self.merges = merges

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1}

    def save_vocabulary(self, folder: str) -> None:
        (Path(folder) / "merges.txt").write_text(self.merges)


def test_of_a_slow_tokenizer() -> None:
    usual = tokenizer_fingerprint(SlowTokenizer("a b"))
    assert tokenizer_fingerprint(SlowTokenizer("a b")) == usual
    assert tokenizer_fingerprint(SlowTokenizer("b a")) != usual


def test_without_a_tokenizer() -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        tokenizer_fingerprint(None)


def test_of_word_pieces_with_a_frame() -> None:
    """Another kind of model and post-processor than byte-level pairs."""

    def made(unknown: str) -> Any:
        backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[X]": 1, "a": 2}, unk_token=unknown))
        backend.post_processor = processors.BertProcessing(("[UNK]", 0), ("[X]", 1))
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    assert tokenizer_fingerprint(made("[UNK]")) == tokenizer_fingerprint(made("[UNK]"))
    assert tokenizer_fingerprint(made("[UNK]")) != tokenizer_fingerprint(made("[X]"))
