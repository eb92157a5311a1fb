# ruff: noqa: E501 (a line of a Markdown table is one line)
"""The table of all architectures as a page of the documentation."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from tests.zoo.checks import COLUMNS
from tests.zoo.dense import DENSE
from tests.zoo.experts import EXPERTS
from tests.zoo.hybrids import HYBRIDS
from tests.zoo.outcome import Outcome
from tests.zoo.registry import LEFT_OUT, of_other_makers
from tests.zoo.species import Species

Rows = Mapping[str, Mapping[str, Sequence[Outcome]]]
"""By name of the architecture and by column."""

PARTS = {
    "Attention and one MLP": DENSE,
    "Experts": EXPERTS,
    "Other layers than attention": HYBRIDS,
}
WRONG = "**FAIL**"
_HEAD = """\
# Architectures

Made by `scripts/architectures.py`, {made}.

Every row is a tiny random model of an architecture that both transformers and TransformerLens'
bridge know. Every cell compares calls of the toolkit with the same thing done by transformers alone:
plain forward hooks and eager attention, whole prompts without a cache, gradients by autograd,
attention cut before the softmax (and that by transformers' own mask, where the architecture takes
one). Weights are large (standard deviation 0.2), biases and norms are not what they begin as,
windows are shorter than the prompts.

* **yes**: the same, to 10⁻⁴ of the largest value or of 1 in float32 (padding: 5·10⁻⁵), NaN in layers
  without such a thing.
* **no** and a number: refused with a `UserError`, whose words stand [below](#why-it-is-refused). Where
  a part of the cell's checks is refused, it is named.
* **fast** or **hooked**: whether sweeps run on the model's plain modules or on the hooked ones. The
  numbers are the same.

| column | what is checked |
|---|---|
| z … resid | `patch`, exact, of each unit: {components}; the residual stream in a span of positions |
| paths | `patch_paths` of every head to the logits, and to the query of one of the last layer |
| AtP | `method="attribution"` of z, q, k and the pattern |
| AtP\\* | `method="atp*"` of z, and of k by its exact patterns |
| IG | `method="ig"` of z |
| site output, site attention | `constrain` in one pass; `locate_heads`, exact, and to first order of the cuts |
| generate | `generate` of transformers under `constrain`, with the cache: both sites, and two prompts of different lengths |
| beams | the same with two beams |
| padding | `patch` of two pairs of different lengths, and `patch_heads` of prompts padded on the right |
| MoELoRA | an adapter on queries and values (or what there is), trained with PEFT, then hooked: logits, and effects of z |

```
python scripts/architectures.py                   # all of them: {minutes} on two cores
python scripts/architectures.py --only GPT-J Jamba
python scripts/architectures.py --check           # compare with this page
```
"""


def render(rows: Rows, *, date: str, minutes: str = "about ten minutes") -> str:
    """The page. Raises KeyError if a row is missing."""
    reasons: dict[str, int] = {}
    made = f"{date}: {versions()}"
    components = "z, q, k, v, pattern, attn_out, mlp_out, resid_pre, resid_mid, resid_post"
    text = [_HEAD.format(made=made, components=components, minutes=minutes)]
    for title, species in PARTS.items():
        text.append(f"## {title}\n")
        columns = ["architecture", "layers", "sweeps", *COLUMNS]
        text.append(_line([column.replace("*", "\\*") for column in columns]))
        text.append("|---" * len(columns) + "|")
        text += [_line(_cells(one, rows[one.name], reasons)) for one in species]
        text.append("")
    text.append("## Why it is refused\n")
    text += [f"{number}. {_plain(reason)}" for reason, number in reasons.items()]
    text.append("\n## Left out\n\nWhat TransformerLens' bridge knows and has no row here:\n")
    for reason, names in LEFT_OUT.items():
        text.append(f"* {reason}: {', '.join(f'`{name}`' for name in names)};")
    others = ", ".join(f"`{name}`" for name in of_other_makers())
    text.append(f"* not in transformers, whose code for it would be downloaded: {others}.\n")
    text.append(
        "A model that transformers knows and the bridge does not is refused by its name, when it "
        "is loaded."
    )
    return "\n".join(text) + "\n"


def versions() -> str:
    """Of the libraries that decide what comes out."""
    names = ("transformers", "transformer-lens", "torch")
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)


def failures(rows: Rows) -> list[str]:
    """A line for every check that came out wrong."""
    return [
        f"{name}: {column} / {one.check}: {one.said}"
        for name, row in rows.items()
        for column, outcomes in row.items()
        for one in outcomes
        if one.kind == "FAIL"
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(
    species: Species, row: Mapping[str, Sequence[Outcome]], reasons: dict[str, int]
) -> list[str]:
    first = row["hooks"][0]
    sweeps = first.said if first.kind == "yes" else _cell(row["hooks"], reasons)
    cells = [_cell(row[column], reasons) if column in row else "" for column in COLUMNS]
    return [f"{species.name}<br>`{species.model}`", species.layers, sweeps, *cells]


def _cell(outcomes: Sequence[Outcome], reasons: dict[str, int]) -> str:
    """``yes``, ``no`` with the number of the reason, or which of the checks are which."""
    groups: dict[str, list[str]] = {}
    for one in outcomes:
        word = WRONG if one.kind == "FAIL" else one.kind
        if one.kind == "refused":
            word = f"no <sup>{reasons.setdefault(one.said, len(reasons) + 1)}</sup>"
        groups.setdefault(word, []).append(one.check)
    if len(groups) == 1:
        return next(iter(groups))
    yes = ["yes"] if "yes" in groups else []
    others = [word for word in groups if word != "yes"]
    return "<br>".join([*yes, *(f"{', '.join(groups[word])}: {word}" for word in others)])


def _plain(reason: str) -> str:
    """A message as Markdown that shows it as it is."""
    return "`" + reason.replace("`", "'") + "`"
