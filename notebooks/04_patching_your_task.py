# %% [markdown]
# # 04 · Patching your own task
#
# The patching engine stands by itself: any hooked model, any pairs of prompts, any component, any
# metric. Which parts of the model carry what tells two prompts apart?
#
# ## Pairs of your own
#
# A file of pairs has one JSON object a line: a clean and a corrupted text, and the answer to each.
# Spans name pieces of both by character offsets, and align prompts of different lengths.

# %%
import torch

import interp

model = interp.load_model("smollm2-135m")
cities = interp.tasks.read_pairs("cities.jsonl")
cities[0]

# %%
interp.tasks.patch_pairs(model, cities, component="resid_pre", positions="spans")

# %% [markdown]
# **Sign.** Effect = metric(patched) − metric(corrupted run), and the patch brings the clean run's
# value. The metric is logit(answer) − logit(wrong answer): *positive* means that the unit carries
# the clean answer. Look for the layers in which the answer moves from the city's tokens to the last
# word.
#
# ## A known circuit: indirect objects
#
# "When Mary and John met at the park, John handed the ball to" goes on with Mary. Sentences ship
# with the package. `screen` ranks all heads by attribution and verifies the first ones exactly.

# %%
ioi = interp.tasks.ioi_pairs(16, tokenizer=model.tokenizer)
heads = interp.tasks.patch_pairs(model, ioi, component="z", method="attribution")
heads

# %%
verified = interp.tasks.patch_pairs(model, ioi, component="z", method="screen", top_k=10)
verified.to_dataframe()

# %% [markdown]
# ## Any component
#
# `z q k v pattern attn_out mlp_out resid_pre resid_mid resid_post`. The MLPs at each of the spans:
# the two names (`io`, `s1`), the second mention of the subject (`s2`) and the last word (`end`).

# %%
interp.tasks.patch_pairs(
    model, ioi, component="mlp_out", method="attribution", positions="spans"
).plot()

# %% [markdown]
# ## Any metric
#
# A metric takes the last position's logits, one row a prompt, to one number a prompt. Does a head
# make the model surer, whatever it says?


# %%
def entropy(logits):
    """Of the next token, in nats."""
    return torch.distributions.Categorical(logits=logits).entropy()


encoded = interp.tasks.encode_pairs(model.tokenizer, ioi)
interp.patching.patch(
    model,
    encoded.clean,
    encoded.corrupted,
    entropy,
    component="z",
    method="attribution",
    groups=encoded.groups,
).plot()

# %% [markdown]
# Here *positive* means that the clean run's value makes the model less sure than in the corrupted
# run.
#
# **A limit.** Attribution is a first-order estimate, and a patch of one unit does not see units
# that stand in for each other. `method="exact"` runs every unit;
# `interp.patching.faithfulness_curve` tests whole sets.
#
# **What was cut for speed.** Few pairs; exact values for ten heads (`method="exact"` gives all).
# On the command line: `interp patch --pairs mine.jsonl --component z --out runs/mine`.
#
# **Where to go next**
#
# - Paths, circuits, faithfulness, AtP\* and integrated gradients:
#   [docs/patching.md](../docs/patching.md).
# - How fast exact sweeps are, and why: [docs/speed.md](../docs/speed.md).
# - [05 MoELoRA experts](05_moelora_experts.ipynb): the same kind of effects for experts.
