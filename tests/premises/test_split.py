"""Nothing of a held-out subject or template reaches the search."""

import pytest

from interp.errors import UserError
from interp.premises import Fact, Premises, Relation, Split, Template, load_premises, split_premises


def numbered(count: int) -> Premises:
    """Facts whose names occur nowhere else: each subject and object is a number in brackets."""
    facts = [Fact(f"[s{i}]", f"[o{i}]") for i in range(count)]
    relation = Relation(
        name="numbered",
        description="",
        subject_kind="subject",
        object_kind="object",
        templates=tuple(
            Template(name, f"{name} template: {{subject}} and {{object}}?") for name in "abcd"
        ),
        search_templates=("a", "c"),
        cloze="{subject} goes with",
        direct="What does {subject} go with?",
        facts=tuple(facts),
    )
    return Premises(relation, relation.facts, relation.template_names)


def texts(premises: Premises) -> list[str]:
    return [
        premises.fill(question, kind).text
        for question in premises.questions()
        for kind in ("false", "twin", "masked")
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_word_in_any_search_text(seed):
    split = numbered(40).split(seed=seed)
    searched = "\n".join(texts(split.search))
    for fact in split.held_out.facts:
        assert fact.subject not in searched
        assert fact.object not in searched
    for template in split.held_out.templates:
        assert f"{template} template" not in searched
    # The check can fail: the search's own names are all there.
    assert all(fact.subject in searched for fact in split.search.facts)
    assert all(f"{template} template" in searched for template in split.search.templates)


@pytest.mark.parametrize(
    "name", ["capitals", "currencies", "languages", "headquarters", "landmarks", "products"]
)
def test_shipped_relations_keep_the_parts_apart(name):
    split = load_premises(name).split(seed=1)
    own_objects = {fact.object for fact in split.search.facts}
    held_out = set(split.held_out.subjects)
    for question in split.search.questions():
        filled = split.search.fill(question, "false")
        assert filled.text[slice(*filled.subject)] not in held_out
        assert filled.text[slice(*filled.object)] in own_objects
    assert not set(split.search.templates) & set(split.held_out.templates)
    assert set(split.search.templates) == set(split.search.relation.search_templates)


def test_everything_is_on_one_side():
    premises = numbered(41)
    split = split_premises(premises, seed=3, fraction=0.25)
    assert len(split.search.facts) == 10
    assert sorted(split.search.subjects + split.held_out.subjects) == sorted(premises.subjects)
    assert split.search.templates == ("a", "c")
    assert split.held_out.templates == ("b", "d")
    assert (split.search.part, split.held_out.part) == ("search", "held_out")


def test_seed_decides_and_order_does_not():
    premises = numbered(40)
    search = set(premises.split(seed=0).search.subjects)
    turned = premises.with_facts(reversed(premises.facts))
    assert set(turned.split(seed=0).search.subjects) == search
    assert set(premises.split(seed=1).search.subjects) != search


def test_a_part_without_a_false_object_is_refused():
    with pytest.raises(UserError, match="no false object"):
        numbered(2).split()  # one fact on either side: nothing to draw


def test_other_search_templates():
    split = numbered(10).split(templates=("b",))
    assert split.search.templates == ("b",)
    assert split.held_out.templates == ("a", "c", "d")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"fraction": 0.0}, "between 0 and 1"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"templates": ("z",)}, "unknown template 'z'; known: a, b, c, d"),
        ({"templates": ("a", "b", "c", "d")}, "cannot split by template"),
        ({"templates": ()}, "cannot split by template"),
    ],
)
def test_impossible_splits(arguments, fault):
    with pytest.raises(UserError) as raised:
        numbered(10).split(**arguments)
    assert fault in str(raised.value)


def test_too_few_facts_or_templates():
    with pytest.raises(UserError, match="need at least 2"):
        numbered(1).split()
    with pytest.raises(UserError, match="cannot split by template"):
        numbered(10).with_templates(["a"]).split()
    with pytest.raises(UserError, match="search part of a split already"):
        numbered(10).split().search.split()


def test_a_split_that_shares_something_is_refused():
    premises = numbered(4)
    with pytest.raises(UserError, match="share the subject"):
        Split(premises.with_templates(["a"]), premises.with_templates(["b"]))
    halves = premises.with_facts(premises.facts[:2]), premises.with_facts(premises.facts[2:])
    for other in ("NI\u0302MES", "N\xeemes\u00a0"):  # other ways to write one name
        facts = [[Fact(name, "x"), Fact(name + "2", "y")] for name in ("N\xeemes", other)]
        parts = [premises.with_facts(some) for some in facts]
        with pytest.raises(UserError, match="share the subject 'N\xeemes'"):
            Split(parts[0].with_templates(["a"]), parts[1].with_templates(["b"]))
        with pytest.raises(UserError, match="subject of relation 'numbered' occurs twice"):
            premises.with_facts([facts[0][0], facts[1][0]])
    with pytest.raises(UserError, match="share the template 'a'"):
        Split(*halves)
