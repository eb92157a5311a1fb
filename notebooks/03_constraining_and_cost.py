# %% [markdown]
# # 03 · Constraining heads, and the cost
#
# Constraining false-premise heads corrects answers. How many heads should be constrained, in which
# mode, and how much does the constraint harm honest questions?

# %%
import pandas as pd

import interp

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=32)).split(seed=0)
effects = {
    "attention": interp.locate_heads(model, split.search, site="attention"),
    "output": interp.locate_heads(model, split.search, site="output"),
}

# %% [markdown]
# ## Gain against cost, on the search part
#
# - **Gain**: increase of the share of false-premise questions for which the model prefers the true
#   object.
# - **Cost**: decrease of P(true object) on their true-premise twins.
#
# At site `attention` the heads cannot attend to the object (`zero`). At site `output` their output
# at the object is set to zero (`zero`) or reversed (`scale` by −1).

# %%
settings = interp.evaluation.compare_settings(
    model,
    split.search,
    effects,
    counts=(1, 3, 8),
    modes={"attention": [("zero", 0.0)], "output": [("zero", 0.0), ("scale", -1.0)]},
)
interp.report.gain_cost_curve(settings)

# %% [markdown]
# Points higher and further left are better. Where a curve becomes flat, more heads cost more than
# they gain. `interp.evaluation.choose_setting(settings, n_heads=3)` returns the row with the
# largest gain; among rows of about equal gain it returns the one with the smallest cost. This
# notebook uses three heads at site `attention`, and makes this choice before it uses any held-out
# data.
#
# ## The held-out part
#
# The held-out part has other cities and other templates. The null is random sets with the same
# number of heads in the same layers.

# %%
heads = effects["attention"].select(count=3)
result = interp.evaluate(model, split.held_out, heads=heads, answers=False)
result

# %%
interp.report.random_null(result.null_dataframe(), result.to_dict())

# %% [markdown]
# The chosen heads should lie to the right of the random sets. Otherwise random heads would do as
# well, and the search would have found nothing.
#
# ## Answers side by side
#
# `outcome` compares whether the answer names the true object without and with the constraint:
# *mended* (only with it), *right* (both), *wrong* (neither) or *broken* (only without it).

# %%
asked = interp.evaluate(model, split.held_out.first(5), heads=heads, random_sets=0)
pd.DataFrame({**pair.to_row(), "outcome": pair.outcome} for pair in asked.answers)[
    ["kind", "question", "baseline", "constrained", "outcome"]
]

# %% [markdown]
# ## The constraint as a value
#
# A constraint is an object that you can combine, compare, save and load.
# `with interp.constrain(model, constraint, premises=split.held_out): ...` applies it to your own
# forward passes and generation.

# %%
constraint = interp.Intervention.of(heads)
constraint

# %% [markdown]
# **Limitation.** The constraint is given the words that are false. On an honest question it is
# given the true words and hides them too, which causes the cost above. In notebook 06 a probe
# decides when to constrain.
#
# **Shortened for speed.** This notebook uses the first 32 capitals, three numbers of heads, and
# answers to a few questions. The full commands are `interp locate` and then
# `interp evaluate runs/capitals --heads 0.01`.
#
# **Next steps**
#
# - [06 Probes and the gate](06_probes_and_gate.ipynb): constrain only where a premise is false.
# - The same interactively, in a browser: `interp explore runs/capitals`.
# - All settings with three seeds: [docs/results.md](../docs/results.md); formulas:
#   [docs/method.md](../docs/method.md).
