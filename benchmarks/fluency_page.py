"""What benchmarks/fluency.py reports of a setting: its measures with intervals, and the tables."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.statistics.significance import mean_interval

NONE, FULL = "no constraint", "in full"
ENGLISH = """
the of and to in is a that it was for as with by on are from at an which this be has its he she they
his her their not or but who also known became become there been were city
"""
OTHER_LANGUAGES = """
le la les des du une un est et dans que qui pour sur avec der das und von mit auf ein eine el
los las del una y en es por con il lo gli di che sono nel della os da em um uma het een van
"""
"""Frequent words of French, German, Spanish, Italian, Portuguese and Dutch, no English ones."""


def described(row: dict[str, Any], seed: int) -> dict[str, Any]:
    """A setting's measures, each [value, low, high] over subjects."""

    def interval(values: Sequence[Any]) -> list[float]:
        pairs = [
            (float(value), subject)
            for value, subject in zip(values, row["subjects"], strict=True)
            if value is not None
        ]
        return list(mean_interval(*zip(*pairs, strict=True), seed=seed))

    def less(a: str, b: str) -> list[float | None]:
        return [
            None if left is None or right is None else left - right
            for left, right in zip(row[a], row[b], strict=True)
        ]

    p_true = np.array(row["p_true_twin"]) if "p_true_twin" in row else None
    return {
        "setting": row["setting"],
        "n": row["n"],
        "n_subjects": len(set(row["subjects"])),
        "after_twin": interval(row["after_twin"]),
        "own_after_twin": interval(row["own_after_twin"]),
        "difference": interval(less("after_twin", "own_after_twin")),
        "english": interval([is_english(answer) for answer in row["answers_false"]]),
        "names_true": interval(row["names_true"]),
        "prefers_true": interval(row["prefers_false"]),
        "p_true_fall": None if p_true is None else interval((p_true[:, 0] - p_true[:, 1]).tolist()),
        "twins_unchanged": None
        if row["twins_unchanged"] is None
        else interval(row["twins_unchanged"]),
        **{name: interval(row[name]) for name in ("fired_false", "fired_twin") if name in row},
    }


def is_english(answer: str) -> bool:
    """Whether frequent words of other languages are not more than English ones."""
    words = re.findall(r"\w+", answer.lower())
    english, others = (set(text.split()) for text in (ENGLISH, OTHER_LANGUAGES))
    return sum(word in others for word in words) <= sum(word in english for word in words)


def page(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    rows, search = content["rows"], content["search"]
    own = rows[0]["own_after_twin"]
    lines = [
        f"{content['model']}, its shipped heads and detector; {content['reported_on']}, "
        f"{rows[0]['n']} false-premise questions about {rows[0]['n_subjects']} held-out subjects, "
        f"answers of at most {content['max_new_tokens']} tokens. 95 % intervals from resampling "
        f"subjects. The model's own answers to the twins: {_shown(own)} nats a token.",
        "",
        "| setting | nats a token, after the twin | less the model's own | English | "
        "names the true object | prefers the truth | fall of P(true object), twins | "
        "twins' answers unchanged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unchanged = "–" if row["twins_unchanged"] is None else f"{row['twins_unchanged'][0]:.2f}"
        lines.append(
            f"| {row['setting']} | {row['after_twin'][0]:.2f} | {_shown(row['difference'])} | "
            f"{row['english'][0]:.2f} | {_shown(row['names_true'])} | "
            f"{_shown(row['prefers_true'])} | {_shown(row['p_true_fall'])} | {unchanged} |"
        )
    null = content["null"]
    fired = {row["setting"]: row for row in rows if "fired_false" in row}
    lines += [
        "",
        f"{null['n_sets']} random sets of 8 heads, matched per layer, prefer the truth in "
        f"{null['mean']:.2f} (95th percentile {null['p95']:.2f}).",
        "",
        *(
            f"- The {name.split(',')[0]} acts on {fired[name]['fired_false'][0]:.2f} of the false "
            f"premises and on {fired[name]['fired_twin'][0]:.2f} of the twins."
            for name in fired
            if name.endswith("in full")
        ),
        "",
        f"On the search halves of {' and '.join(content['chosen_on'])} "
        f"({search[0]['n']} questions, {search[0]['n_subjects']} subjects), where the setting is "
        f"chosen (**{content['chosen']}**):",
        "",
        "| setting | less the model's own | English | names the true object | prefers the truth |",
        "|---|---|---|---|---|",
    ]
    for row in search:
        lines.append(
            f"| {row['setting']} | {_shown(row['difference'])} | {row['english'][0]:.2f} | "
            f"{_shown(row['names_true'])} | {_shown(row['prefers_true'])} |"
        )
    for example in content["examples"]:
        lines += ["", f"*{example['question']}*", ""]
        lines += [
            f"- {name}: {' '.join(text.split())}"
            for name, text in example.items()
            if name != "question"
        ]
    return "\n".join(lines)


def _shown(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
