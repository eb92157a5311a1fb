# %% [markdown]
# # 03 · Constraining heads, and what it costs
#
# Constraining false-premise heads mends answers. How many heads should it be, in which way, and
# what do honest questions pay?

# %%
import pandas as pd

import interp

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=40)).split(seed=0)
effects = {
    "attention": interp.locate_heads(model, split.search, site="attention"),
    "output": interp.locate_heads(model, split.search, site="output"),
}

# %% [markdown]
# ## Gain against cost, on the search part
#
# - **Gain**: rise of the share of false-premise questions on which the true object is preferred.
# - **Cost**: fall of P(true object) on their true-premise twins.
#
# At site `attention` the heads may not look at the object (`zero`). At site `output` their output
# there is set to zero, or turned round (`scale` by −1).

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
# Up and to the left is better; where a line turns flat, further heads cost more than they bring.
# `interp.evaluation.choose_setting(settings, n_heads=3)` names the row with the most gain, and of
# about equals the least cost. Three heads at site `attention` are taken here, before anything held
# out is looked at.
#
# ## The held-out part
#
# Other cities and other wordings, beside a null: random sets with as many heads in the same layers.

# %%
heads = effects["attention"].select(count=3)
result = interp.evaluate(model, split.held_out, heads=heads, answers=False)
result

# %%
interp.report.random_null(result.null_dataframe(), result.to_dict())

# %% [markdown]
# The chosen heads should lie to the right of the random sets. If they did not, any heads would do,
# and the search would have found nothing.
#
# ## Answers side by side
#
# `outcome` says what the constraint did to the naming of the true object: *mended*, *right* before
# and after, *wrong* before and after, or *broken*.

# %%
asked = interp.evaluate(model, split.held_out.first(5), heads=heads, random_sets=0)
pd.DataFrame({**pair.to_row(), "outcome": pair.outcome} for pair in asked.answers)[
    ["kind", "question", "baseline", "constrained", "outcome"]
]

# %% [markdown]
# ## The constraint as a value
#
# It can be combined, compared, saved and loaded. `with interp.constrain(model, constraint,
# premises=split.held_out): ...` holds it around forward passes and generation of your own.

# %%
constraint = interp.Intervention.of(heads)
constraint

# %% [markdown]
# **A limit.** The constraint is told which words are false. On an honest question it would be told
# the true ones, and cuts them off too: that is the cost above. Notebook 06 lets a probe decide.
#
# **What was cut for speed.** The first 40 capitals, three head counts, answers to few questions.
# In full: `interp evaluate runs/capitals --heads 0.01` after `interp locate`.
#
# **Where to go next**
#
# - [06 Probes and the gate](06_probes_and_gate.ipynb): act only where a premise is false.
# - The same by hand, in a browser: `interp explore runs/capitals`.
# - All settings with three seeds: [docs/results.md](../docs/results.md); formulas:
#   [docs/method.md](../docs/method.md).
