"""All architectures of the zoo, by name, and what is left out, with the reasons."""

import transformers

from tests.zoo.dense import DENSE
from tests.zoo.experts import EXPERTS
from tests.zoo.hybrids import HYBRIDS
from tests.zoo.species import Species

ZOO: dict[str, Species] = {one.name: one for one in (*DENSE, *EXPERTS, *HYBRIDS)}

_NO_DECODER = "reads or labels text, sound or images, and does not write on"
_TWO_PARTS = "an encoder with a decoder"
_SEVERAL = "reads images or sound too; the class of its text model, if there is one, has a row"
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "an indexer chooses keys by the mask: a cut of scores and one of the mask are two things": (
        "GlmMoeDsaForCausalLM",
    ),
    _NO_DECODER: (
        "ASTForAudioClassification",
        "BertForMaskedLM",
        "BloomModel",
        "DeiTForImageClassification",
        "DeiTModel",
        "HubertForCTC",
        "HubertModel",
        "RobertaForMaskedLM",
        "ViTForImageClassification",
        "ViTModel",
        "Wav2Vec2ForCTC",
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Model",
    ),
    _TWO_PARTS: (
        "BartForConditionalGeneration",
        "BlenderbotForConditionalGeneration",
        "LEDForConditionalGeneration",
        "LongT5ForConditionalGeneration",
        "M2M100ForConditionalGeneration",
        "MBartForConditionalGeneration",
        "MT5ForConditionalGeneration",
        "MarianMTModel",
        "PegasusForConditionalGeneration",
        "SwitchTransformersForConditionalGeneration",
        "T5ForConditionalGeneration",
        "T5Gemma2ForConditionalGeneration",
        "T5GemmaForConditionalGeneration",
    ),
    _SEVERAL: (
        "AudioFlamingo3ForConditionalGeneration",
        "Emu3ForConditionalGeneration",
        "Florence2ForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "GlmAsrForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "MuseGlimmerForConditionalGeneration",
        "MusicFlamingoForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    "its layers run several times in a pass, so that a layer's value is not one": (
        "HrmTextForCausalLM",
    ),
}
"""By reason: the classes that TransformerLens and transformers both know, and that have no row."""


def of_other_makers() -> list[str]:
    """Classes that TransformerLens knows, and transformers does not: their code is elsewhere."""
    names = {name for name in supported() if not hasattr(transformers, name)}
    covered = {name for one in ZOO.values() for name in one.settings.get("architectures", ())}
    return sorted(names - covered, key=str.casefold)


def without_row() -> list[str]:
    """Classes that both know, but that are neither in the zoo nor among those left out."""
    rows = {one.model for one in ZOO.values()}
    out = {name for names in LEFT_OUT.values() for name in names}
    return sorted(
        name for name in supported() if hasattr(transformers, name) and name not in rows | out
    )


def supported() -> list[str]:
    """The classes that TransformerLens' bridge has an adapter for."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return list(SUPPORTED_ARCHITECTURES)
