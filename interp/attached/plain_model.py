"""A transformers model as a detector, and the checks of a run, read a hooked one.

It runs transformers' own modules. Of the hook points it has the residual stream behind each block,
where nothing can be written, and the attention scores. What is written there is an edit of the
mask, which is added to the scores; they cannot be read.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from interp.attached.anatomy import Anatomy
from interp.attached.head_mask import as_scores, mask_hook
from interp.errors import UserError
from interp.forward.hook_points import hook_name
from interp.models.device_map import describe
from interp.models.fingerprint import fingerprint_of_folder, fingerprint_of_model, weight_files
from interp.models.limits import vocabulary_size
from interp.models.load import ModelInfo, keep_info
from interp.models.model_check import ModelCheck, keep_check
from interp.models.placement import input_device
from interp.models.quantization import NAMES, quantization_name, quantized_fingerprint
from interp.models.spec import cache_root
from interp.patching.edits import scores_hook_name
from interp.precision import plain_dtype


class PlainModel:
    """What reading a model needs of a hooked one.

    Attributes:
        original_model: the transformers model.
        tokenizer: its tokenizer, with the special tokens that a hooked model's has.
        cfg: ``n_layers``, ``n_heads`` and ``d_vocab``.
        blocks: the layers, once reading them has shown what they return; before that none, so that
            nobody replaces their forwards.
        hook_dict: the hook points that can be read, by name.
    """

    def __init__(
        self, hf_model: Any, tokenizer: Any, anatomy: Anatomy, *, wanted: str | None = None
    ) -> None:
        """Find the model's fingerprint: ``wanted`` if that is one of those that it may have."""
        self.original_model, self.tokenizer = hf_model, with_special_tokens(tokenizer)
        n_layers = len(anatomy.layers)
        self.cfg = SimpleNamespace(
            n_layers=n_layers, n_heads=anatomy.n_heads, d_vocab=vocabulary_size(hf_model)
        )
        self.blocks: tuple[Any, ...] = ()
        self._layers = anatomy.layers
        self.hook_dict = {
            hook_name("resid_post", number): layer for number, layer in enumerate(anatomy.layers)
        }
        attention = {
            scores_hook_name(number): number
            for number, module in enumerate(anatomy.attention)
            if module is not None
        }
        self.hook_dict |= {name: anatomy.attention_of(at) for name, at in attention.items()}
        self._attention = attention
        config = hf_model.config.get_text_config()
        n_kv_heads = getattr(config, "num_key_value_heads", None) or anatomy.n_heads
        found = ModelInfo(
            spec=str(hf_model.config._name_or_path or "in-memory"),
            fingerprint=plain_fingerprint(hf_model, wanted=wanted),
            dtype=str(plain_dtype(hf_model)).removeprefix("torch."),
            device=str(input_device(hf_model)),
            attn_implementation=str(config._attn_implementation),
            n_layers=n_layers,
            n_heads=anatomy.n_heads,
            n_kv_heads=n_kv_heads,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // anatomy.n_heads,
            device_map=describe(hf_model),
        )
        keep_info(self, found)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
        """While open, the functions read, or edit the scores, at their hook points."""

        def read(module: Any, args: Any, output: Any, *, function: Callable[..., Any]) -> None:
            if not self.blocks:
                n_values = len(output) if isinstance(output, tuple) else 0
                keep_check(self, ModelCheck(tuple_outputs=(n_values,) * len(self._layers)))  # type: ignore[arg-type]
                self.blocks = self._layers
            value: Tensor = output[0] if isinstance(output, tuple) else output
            function(value, module)

        def edit(
            given: Any, hidden: Tensor, cache: Any, *, function: Callable[..., Any], layer: int
        ) -> Tensor:
            n_cached = 0 if cache is None else int(cache.get_seq_length(layer))
            scores = as_scores(given, hidden, self.cfg.n_heads, first_query=n_cached)
            return function(scores, self.hook_dict[scores_hook_name(layer)])

        with ExitStack() as stack:
            for name, function in fwd_hooks:
                module = self.hook_dict[name]
                if name in self._attention:
                    make = partial(edit, function=function, layer=self._attention[name])
                    handle = module.register_forward_pre_hook(
                        mask_hook(module, make), with_kwargs=True
                    )
                else:
                    handle = module.register_forward_hook(partial(read, function=function))
                stack.enter_context(handle)
            yield

    def named_parameters(self) -> Iterator[Any]:
        """Those of the transformers model."""
        return self.original_model.named_parameters()

    def named_buffers(self) -> Iterator[Any]:
        """Those of the transformers model."""
        return self.original_model.named_buffers()

    def named_modules(self) -> Iterator[Any]:
        """Those of the transformers model."""
        return self.original_model.named_modules()


def with_special_tokens(tokenizer: Any) -> Any:
    """The tokenizer of the hooked model, to which TransformerLens gives tokens that are missing.

    What was fitted or searched on the hooked model is known by that one's fingerprint.
    """
    names = ("eos_token", "pad_token", "bos_token")
    if all(getattr(tokenizer, name) is not None for name in names):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    for name in names:
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, tokenizer.eos_token or "<|endoftext|>")
    for name in names:
        if getattr(tokenizer, f"{name}_id") is None:
            tokenizer.add_special_tokens({name: getattr(tokenizer, name)})
    return tokenizer


def plain_fingerprint(hf_model: Any, *, wanted: str | None = None) -> str:
    """The fingerprint of a transformers model, as hex.

    A model that was loaded has that of its files, and in any case one over its weights in memory.
    ``wanted`` is returned if it is one of them, else the first.
    """
    found = _fingerprints(hf_model)
    first = next(found)
    if wanted in (None, first) or wanted in found:
        return wanted or first
    return first


def _fingerprints(hf_model: Any) -> Iterator[str]:
    folder = _folder_of(hf_model)
    if folder is not None:
        digest = fingerprint_of_folder(folder, cache=cache_root() / "fingerprints")
        if not getattr(hf_model, "is_quantized", False):
            yield digest
        else:
            described = quantization_name(getattr(hf_model.config, "quantization_config", None))
            for name in (described, *NAMES):
                yield quantized_fingerprint(digest, name)
            yield digest  # the files hold quantized weights
    config = hf_model.config.to_dict()
    if not config.get("architectures"):  # as `interp.models.from_hf` names them
        config["architectures"] = [type(hf_model).__name__]
    yield fingerprint_of_model(hf_model, config)


def _folder_of(hf_model: Any) -> Path | None:
    """The directory that a model was loaded from, if it is still there with weights."""
    name = str(hf_model.config._name_or_path or "")
    folder = Path(name)
    if name and not folder.is_dir():
        revision = getattr(hf_model.config, "_commit_hash", None)
        try:
            found = try_to_load_from_cache(name, "config.json", revision=revision)
        except ValueError:  # no name of a repository
            return None
        folder = Path(found).parent if isinstance(found, str) else folder
    there = bool(name) and (folder / "config.json").is_file() and bool(weight_files(folder))
    return folder if there else None


def check_plain(hf_model: Any) -> None:
    """Raise UserError for anything but a causal language model of transformers."""
    if not hasattr(hf_model, "get_output_embeddings") or not hasattr(hf_model, "config"):
        raise UserError(
            "attach takes a causal language model of transformers, not "
            f"{type(hf_model).__name__}: load one with transformers.AutoModelForCausalLM"
        )
