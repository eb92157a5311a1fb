"""One question answered without and with a constraint: a line of ``generations.jsonl``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

AnswerKind = Literal["false_premise", "true_premise"]
Outcome = Literal["mended", "right", "wrong", "broken"]
_Pair = TypeVar("_Pair", bound="AnswerPair")


@dataclass(frozen=True)
class AnswerPair:
    """One question, with the greedy answer without and with the constraint.

    `kind` is an `AnswerKind`; `object_span` is in characters [start, end) of the question, and so
    is the span in `acted_on`, where a detector let the constraint act: empty where it found
    nothing, None without a detector, where the constraint acts at the object. Raises ValueError for
    another kind, or a span that the question does not have.
    """

    kind: str
    template: str
    subject: str
    true_object: str
    false_object: str
    question: str
    object_span: tuple[int, int]
    baseline: str
    constrained: str
    baseline_names_true: bool
    baseline_names_false: bool
    constrained_names_true: bool
    constrained_names_false: bool
    acted_on: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(AnswerKind):
            raise ValueError(f"kind is {self.kind!r}; known are {', '.join(get_args(AnswerKind))}")
        for name, spans in (("object_span", [self.object_span]), ("acted_on", self.acted_on or ())):
            for start, end in spans:
                if not 0 <= start < end <= len(self.question):
                    raise ValueError(
                        f"{name} [{start}, {end}) lies outside the question of "
                        f"{len(self.question)} characters"
                    )

    @classmethod
    def from_row(cls: type[_Pair], row: Any) -> _Pair:
        """Make from a parsed line of `generations.jsonl`. Raises ValueError if it is not valid."""
        if not isinstance(row, Mapping):
            raise ValueError("not a JSON object")
        kinds = {field.name: field.type for field in fields(cls) if field.name != "acted_on"}
        if missing := [key for key in kinds if key not in row]:
            raise ValueError(f"lacks {', '.join(missing)}")
        for kind, words in ((str, "text"), (bool, "true or false")):
            if wrong := [key for key in kinds if kinds[key] is kind and type(row[key]) is not kind]:
                raise ValueError(f"{', '.join(wrong)} must be {words}")
        values: dict[str, Any] = {key: row[key] for key in kinds}
        values["object_span"] = _span("object_span", row["object_span"])
        if row.get("acted_on") is not None:
            if not isinstance(row["acted_on"], list):
                raise ValueError("acted_on must be a list of spans")
            values["acted_on"] = tuple(_span("acted_on", span) for span in row["acted_on"])
        return cls(**values)

    def to_row(self) -> dict[str, Any]:
        """The fields as a line of `generations.jsonl` holds them."""
        row = asdict(self)
        if self.acted_on is None:
            del row["acted_on"]
        return row

    @property
    def outcome(self) -> Outcome:
        """How the constraint changed whether the answer names the true object."""
        if self.constrained_names_true:
            return "right" if self.baseline_names_true else "mended"
        return "broken" if self.baseline_names_true else "wrong"


def _span(name: str, span: Any) -> tuple[int, int]:
    """Two whole numbers. Raises ValueError for anything else."""
    if not isinstance(span, list) or len(span) != 2 or any(type(at) is not int for at in span):
        raise ValueError(f"{name} must be two whole numbers")
    return span[0], span[1]
