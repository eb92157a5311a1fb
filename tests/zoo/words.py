"""A tokenizer of about 300 tokens, made on the spot: bytes, and the words of a few questions."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 320
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""What every configuration says of the tokens."""
_TEXTS = [
    "Question: Why is Oslo the capital of Sweden?\nAnswer: Oslo is the capital of Norway.",
    "Question: What is Lima, the capital of Chile, famous for?\nAnswer: Lima is in Peru.",
    "When did Cairo become the capital of Kenya? Cairo is the capital of Egypt. Nairobi",
]


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE; any text can be encoded, and gets nothing in front or behind."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<begin>", eos_token="<end>", pad_token="<end>"
    )
