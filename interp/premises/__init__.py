"""Facts, the false-premise questions made from them, and which of them a model knows."""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand

if TYPE_CHECKING:
    from interp.premises.encode import (
        EncodedPremise,
        EncodedPremises,
        EncodedPrompt,
        encode_premises,
        encode_question,
    )
    from interp.premises.joint import JointPremises, JointSplit
    from interp.premises.knowledge import Knowledge, check_knowledge, filter_known
    from interp.premises.question_files import load_questions
    from interp.premises.question_list import QuestionList, RawQuestion
    from interp.premises.questions import (
        FalseObjectDistance,
        Premises,
        Question,
        QuestionKind,
        Split,
        load_premises,
        split_premises,
    )
    from interp.premises.registry import list_relations, load_relation
    from interp.premises.relation import (
        FRAMES,
        Fact,
        FalseObjectRule,
        FilledQuestion,
        Relation,
        Template,
        names,
        names_any,
    )

__all__ = [
    "FRAMES",
    "EncodedPremise",
    "EncodedPremises",
    "EncodedPrompt",
    "Fact",
    "FalseObjectDistance",
    "FalseObjectRule",
    "FilledQuestion",
    "JointPremises",
    "JointSplit",
    "Knowledge",
    "Premises",
    "Question",
    "QuestionKind",
    "QuestionList",
    "RawQuestion",
    "Relation",
    "Split",
    "Template",
    "check_knowledge",
    "encode_premises",
    "encode_question",
    "filter_known",
    "list_relations",
    "load_premises",
    "load_questions",
    "load_relation",
    "names",
    "names_any",
    "split_premises",
]

__getattr__, __dir__ = names_on_demand(__name__)
