# %% [markdown]
# # 02 · False-premise heads
#
# Which heads carry a false premise into the answer, how certain is the result, and is the fast
# estimate correct? This notebook goes through the search step by step.
#
# ## Facts that the model knows
#
# A wrong answer to a false premise is a hallucination only if the model knows the fact. The first
# step therefore tests whether the model knows each fact.

# %%
import interp

model = interp.load_model("smollm2-135m")
premises = interp.load_premises("capitals", limit=40)
knowledge = interp.premises.check_knowledge(model, premises)
knowledge

# %% [markdown]
# ## Two parts without overlap
#
# The search for heads uses one part, and the evaluation uses the other. The parts share no city and
# no template, so a head that responds only to one sentence does not pass.

# %%
split = knowledge.keep(premises).split(seed=0)
split

# %%
split.search

# %% [markdown]
# ## Two sites
#
# - `site="output"`: the head's output at the false object is set to zero. This finds heads that
#   *write* the false premise there.
# - `site="attention"`: attention from later tokens to the false object is cut. This finds heads
#   that *read* the false premise.
#
# **Sign.** Effect = [logit(true) − logit(false)] with the head edited, minus the same difference
# without the edit. Positive: the answer gets better without the head's contribution.

# %%
writing = interp.locate_heads(model, split.search, site="output")
writing

# %%
reading = interp.locate_heads(model, split.search, site="attention")
reading.plot(reading.select(fraction=0.01))

# %% [markdown]
# The framed cells are the 1 % of heads with the largest effects. Do both sites find heads in the
# same layers? The next figure shows the effects by layer, with intervals over subjects:

# %%
reading.plot(by="layer")

# %% [markdown]
# ## Significance
#
# Questions about one city are not independent, so intervals and tests resample cities. q-values
# control the false-discovery rate over all heads. This selects every head with a positive effect at
# 5 %:

# %%
reading.select(fdr=0.05)

# %% [markdown]
# ## Is the estimate correct?
#
# The effects above are first-order estimates, which all come from one backward pass. The exact
# effect needs one run per head, so it is computed for a few facts only.

# %%
few = split.search.first(6).with_templates(["why"])
estimate = interp.locate_heads(model, few, site="attention", method="attribution")
exact = interp.locate_heads(model, few, site="attention", method="activation")
interp.report.method_agreement(
    estimate.to_dataframe(), exact.to_dataframe(), x_name="estimate", y_name="exact edit"
)

# %% [markdown]
# Points near the line y = x are heads with a good estimate. Points far from it are heads with a
# wrong estimate, because a linear approximation ignores the saturation of the softmax. Verify the
# heads that you report with an exact method.
#
# ## A control with no effect
#
# The control applies the same edit between two runs of the *same* true-premise question. Every
# effect must be zero, up to rounding.

# %%
control = interp.locate_heads(model, split.search, kind="twin", source="twin")
control.values.abs().max().item()

# %% [markdown]
# **Limitation.** Each head is edited alone. Heads that can replace each other have small effects
# alone and a large effect together; the next notebook measures the effect of a *set* of heads.
#
# **Shortened for speed.** This notebook uses the first 40 capitals, and exact effects for six facts
# only. The full command is
# `interp locate --premises capitals --method path --site both --out runs/capitals`.
#
# **Next steps**
#
# - [03 Constraining and its cost](03_constraining_and_cost.ipynb): the effect of the heads as a
#   set.
# - Your own relation, from one CSV and one YAML file:
#   [docs/own-relation.md](../docs/own-relation.md).
# - Formulas and sign conventions: [docs/method.md](../docs/method.md).
