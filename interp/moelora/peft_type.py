"""MoELoRA's place in PEFT's list of methods.

PEFT reads the method of an adapter from ``adapter_config.json`` as a member of its enumeration
``PeftType`` and registers a method under such a member. It offers no way to add one from outside,
so the member is made here, in the way `enum` makes members itself; nothing of PEFT is replaced.
"""

from peft.utils import PeftType

MOELORA = "MOELORA"


def add_peft_type(name: str = MOELORA) -> PeftType:
    """The member of ``PeftType`` with that name, added if it is not there yet."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    # The order matters: a class attribute can be set only while its name is not a member's.
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


add_peft_type()
