import json
import math
from typing import Any

import pytest
from peft import PeftConfig
from peft.utils import PeftType

from interp.errors import UserError
from interp.moelora import MoELoRAConfig
from interp.moelora.config import add_peft_type


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top_k": 9}, "top_k=9 is more than the 8 experts"),
        ({"num_experts": [4, 1]}, "top_k=2 is more than the 1 experts"),
        ({"num_experts": []}, "num_experts"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": [4, True]}, "num_experts"),
        ({"r": 0}, "r is a whole number"),
        ({"r": True}, "r is a whole number"),
        ({"top_k": 0}, "top_k"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"router_noise": -1.0}, "router_noise"),
        ({"load_balance_weight": -0.1}, "load_balance_weight"),
        ({"contrastive_weight": math.inf}, "contrastive_weight"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature"),
        ({"contrastive_tokens": 1}, "contrastive_tokens"),
        ({"contrastive_start": -1.0}, "contrastive_start"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"bias": "all"}, "bias"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
    ],
)
def test_a_value_out_of_range_is_told_in_one_line(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        MoELoRAConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_scaling_by_hand() -> None:
    assert MoELoRAConfig(r=4, lora_alpha=8).scaling == 2.0
    assert MoELoRAConfig(r=4, lora_alpha=8, use_rslora=True).scaling == 4.0


def test_counts_per_layer() -> None:
    config = MoELoRAConfig(num_experts=[2, 5])
    assert [config.experts_in(layer, "q") for layer in (0, 1)] == [2, 5]
    assert MoELoRAConfig(num_experts=3).experts_in(None, "q") == 3
    with pytest.raises(UserError, match="layer 2"):
        config.experts_in(2, "layers.2.q")
    with pytest.raises(UserError, match="no numbered layer"):
        config.experts_in(None, "q")


def test_written_and_read_again_as_its_own_class(tmp_path: Any) -> None:
    config = MoELoRAConfig(r=3, num_experts=[4, 6], target_modules={"v_proj", "q_proj"})
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["peft_type"] == "MOELORA"
    assert written["target_modules"] == ["q_proj", "v_proj"]
    read = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, MoELoRAConfig)
    assert read.to_dict() == config.to_dict()


def test_the_method_is_a_member_of_pefts_enumeration_once() -> None:
    member = PeftType("MOELORA")
    assert member is PeftType["MOELORA"] is add_peft_type()
    assert list(PeftType).count(member) == 1
    assert isinstance(member, PeftType)
    assert (member.name, member.value) == ("MOELORA", "MOELORA")
    with pytest.raises(ValueError, match="NOT_ONE"):
        PeftType("NOT_ONE")


def test_another_task_type_is_told() -> None:
    with pytest.raises(UserError, match=r"unknown task_type 'chat'; known: .*CAUSAL_LM"):
        MoELoRAConfig(task_type="chat")  # type: ignore[arg-type]
