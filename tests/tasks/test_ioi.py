"""Indirect-object identification: the sentences mean what the task says, whatever the seed."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.tasks import encode_pairs, ioi_pairs
from interp.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, check_corruption, single_token_names


def words(text: str) -> list[str]:
    return text.replace(",", " ").replace(".", " ").split()


@given(seed=st.integers(0, 2**32), n=st.integers(1, 40))
def test_the_subject_is_named_twice_and_the_object_once(seed: int, n: int) -> None:
    pairs = ioi_pairs(n, seed=seed)
    assert len(pairs) == n
    for pair in pairs:
        io, subject = pair.answer.strip(), pair.wrong_answer.strip()
        assert Counter(word for word in words(pair.clean) if word in NAMES) == {io: 1, subject: 2}
        # The second mention turned round: now the subject is the one that is named once.
        assert Counter(w for w in words(pair.corrupted) if w in NAMES) == {io: 2, subject: 1}
        spans = {name: pair.clean[slice(*clean)] for name, (clean, _) in pair.spans.items()}
        assert spans == {"io": io, "s1": subject, "s2": subject, "end": "to"}
        twin = {name: pair.corrupted[slice(*there)] for name, (_, there) in pair.spans.items()}
        assert twin == {"io": io, "s1": subject, "s2": io, "end": "to"}
        assert pair.clean[: pair.spans["s2"][0][0]] == pair.corrupted[: pair.spans["s2"][1][0]]


def test_random_names_leave_nothing_to_answer_by() -> None:
    for pair in ioi_pairs(30, corruption="random"):
        clean = {word for word in words(pair.clean) if word in NAMES}
        corrupted = [word for word in words(pair.corrupted) if word in NAMES]
        assert len(set(corrupted)) == 3
        assert clean.isdisjoint(corrupted)


def test_orders_templates_and_names_are_balanced() -> None:
    pairs = ioi_pairs(64)
    first = sum(pair.spans["io"][0] < pair.spans["s1"][0] for pair in pairs)
    assert first == 32
    assert set(Counter(pairs.templates).values()) == {8}
    assert len(set(pairs.groups)) == 64


def test_the_seed_decides() -> None:
    assert ioi_pairs(20, seed=3) == ioi_pairs(20, seed=3)
    assert ioi_pairs(20, seed=3) != ioi_pairs(20, seed=4)


def test_no_word_of_a_list_comes_twice_or_looks_like_a_name() -> None:
    for listed in (NAMES, PLACES, OBJECTS):
        assert len(set(listed)) == len(listed)
    assert not {word for text in TEMPLATES.values() for word in words(text)} & set(NAMES)


def test_clean_and_corrupted_have_the_same_length(name_tokenizer: Any) -> None:
    for corruption in ("swap", "random"):
        pairs = ioi_pairs(32, tokenizer=name_tokenizer, corruption=corruption)
        encoded = encode_pairs(name_tokenizer, pairs)
        assert encoded.aligned
        differs = (encoded.clean.tokens != encoded.corrupted.tokens).sum(dim=1)
        assert differs.tolist() == [1 if corruption == "swap" else 3] * 32
        assert name_tokenizer.convert_ids_to_tokens(encoded.answer) == [
            pair.answer.strip() for pair in pairs
        ]
        assert torch.equal(encoded.clean.mask, encoded.corrupted.mask)


def test_only_names_of_one_token_are_used(name_tokenizer: Any, plain_tokenizer: Any) -> None:
    assert single_token_names(name_tokenizer) == list(NAMES)
    with pytest.raises(UserError, match="knows 0 of our 62 names"):
        ioi_pairs(4, tokenizer=plain_tokenizer)


def test_the_embedded_models_tokenizer_knows_the_names(smollm: Any) -> None:
    assert len(single_token_names(smollm.tokenizer)) >= 50
    pairs = ioi_pairs(64, tokenizer=smollm.tokenizer)
    assert encode_pairs(smollm.tokenizer, pairs).aligned


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(UserError, match="unknown corruption 'shuffle'; known: swap, random"):
        check_corruption("shuffle")
    with pytest.raises(UserError, match="at least one"):
        ioi_pairs(0)
    with pytest.raises(UserError, match="a tokenizer of transformers is needed here, and str"):
        ioi_pairs(4, tokenizer="gpt2")


def test_a_tokenizer_that_begins_texts_with_a_space_knows_the_names() -> None:
    """Llama 2's and Mistral's put it before every text, and before a space that is there too."""
    vocabulary = {"<unk>": 0, "\u2581": 1, "\u2581and": 2}
    vocabulary |= {f"\u2581{name}": 3 + index for index, name in enumerate(NAMES)}
    pieces = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0))
    pieces.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>")
    assert len(tokenizer(f" {NAMES[0]}")["input_ids"]) == 2
    assert single_token_names(tokenizer) == list(NAMES)
