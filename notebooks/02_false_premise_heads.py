# %% [markdown]
# # 02 · False-premise heads
#
# Which heads carry a false premise into the answer, how sure is that, and is the quick estimate
# right? This notebook goes through the search step by step.
#
# ## Only what the model knows
#
# A wrong answer to a false premise is a hallucination only if the model knows the fact. So every
# fact is asked for directly first.

# %%
import interp

model = interp.load_model("smollm2-135m")
premises = interp.load_premises("capitals", limit=60)
knowledge = interp.premises.check_knowledge(model, premises)
knowledge

# %% [markdown]
# ## Two parts that share nothing
#
# Heads are searched on one part and scored on the other. The parts share no city and no wording, so
# that a head that only likes one sentence does not pass.

# %%
split = knowledge.keep(premises).split(seed=0)
split

# %%
split.search

# %% [markdown]
# ## Two places to act
#
# - `site="output"`: the head's output at the false object is set to zero. Finds heads that *write*
#   the false premise there.
# - `site="attention"`: attention from later tokens to the false object is cut. Finds heads that
#   *read* it.
#
# **Sign.** Effect = logit(true) − logit(false) with the head edited, less the same without the
# edit. Positive: the answer gets better without the head's part.

# %%
writing = interp.locate_heads(model, split.search, site="output")
writing

# %%
reading = interp.locate_heads(model, split.search, site="attention")
reading.plot(reading.select(fraction=0.01))

# %% [markdown]
# Look for the framed cells, the 1 % with the largest effects. Do the two sites find heads in the
# same layers? By layer, with intervals over subjects:

# %%
reading.plot(by="layer")

# %% [markdown]
# ## How sure is it?
#
# Questions about one city are not independent, so intervals and tests resample cities, and q-values
# control the false-discovery rate over all heads. Every head with a positive effect at 5 %:

# %%
reading.select(fdr=0.05)

# %% [markdown]
# ## Is the estimate right?
#
# The effects above are first-order estimates: one backward pass gives them all. The exact value
# takes one run for each head, so it is computed for a few facts only.

# %%
few = split.search.first(6).with_templates(["why"])
estimate = interp.locate_heads(model, few, site="attention", method="attribution")
exact = interp.locate_heads(model, few, site="attention", method="activation")
interp.report.method_agreement(
    estimate.to_dataframe(), exact.to_dataframe(), x_name="estimate", y_name="exact edit"
)

# %% [markdown]
# Heads on the rising line are estimated well. Look for points far off it: heads that the estimate
# misjudges, since a straight line does not see the softmax saturate. Verify what matters exactly.
#
# ## A control in which there is nothing to find
#
# The same edit between two runs of the *same* true-premise question. Every effect must be zero,
# up to rounding.

# %%
control = interp.locate_heads(model, split.search, kind="twin", source="twin")
control.values.abs().max().item()

# %% [markdown]
# **A limit.** Heads are edited one at a time. Heads that stand in for each other look small alone
# and matter together; what a *set* does is measured in the next notebook.
#
# **What was cut for speed.** The first 60 capitals; exact values for six facts only. In full:
# `interp locate --premises capitals --method path --site both --out runs/capitals`.
#
# **Where to go next**
#
# - [03 Constraining and its cost](03_constraining_and_cost.ipynb): what the heads do as a set.
# - A relation of your own, from one CSV and one YAML file:
#   [docs/own-relation.md](../docs/own-relation.md).
# - Formulas and sign conventions: [docs/method.md](../docs/method.md).
