# %% [markdown]
# # 04 · Patching your own task
#
# The patching engine works independently of false premises: with any hooked model, any pairs of
# prompts, any component and any metric. Which parts of the model carry the difference between two
# prompts?
#
# ## Your own pairs
#
# A file of pairs has one JSON object per line: a clean and a corrupted text, and the answer to
# each. Spans mark parts of both texts by character offsets, and align prompts of different lengths.

# %%
import torch

import interp

model = interp.load_model("smollm2-135m")
cities = interp.tasks.read_pairs("cities.jsonl")
cities[0]

# %%
interp.tasks.patch_pairs(model, cities, component="resid_pre", positions="spans")

# %% [markdown]
# **Sign.** Effect = metric(patched) − metric(corrupted run); the patch inserts the clean run's
# value. The metric is logit(answer) − logit(wrong answer): *positive* means that the unit carries
# the clean answer. Look for the layers in which the answer moves from the city's tokens to the last
# word.
#
# ## A known circuit: indirect objects
#
# "When Mary and John met at the park, John handed the ball to" continues with Mary. The package
# contains such sentences. `screen` ranks all heads by attribution and computes the first ones
# exactly.

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
# The components are `z q k v pattern attn_out mlp_out resid_pre resid_mid resid_post`. This figure
# shows the MLPs at each span: the two names (`io`, `s1`), the second mention of the subject (`s2`)
# and the last word (`end`).

# %%
interp.tasks.patch_pairs(
    model, ioi, component="mlp_out", method="attribution", positions="spans"
).plot()

# %% [markdown]
# ## Any metric
#
# A metric maps the logits at the last position to one number per prompt. This metric shows whether
# a head makes the model more certain, whatever the answer is.


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
# Here *positive* means that the clean run's value makes the model less certain than in the
# corrupted run.
#
# **Limitation.** Attribution is a first-order estimate, and the patch of a single unit misses units
# that can replace each other. `method="exact"` runs every unit;
# `interp.patching.faithfulness_curve` tests whole sets.
#
# **Shortened for speed.** This notebook uses few pairs, and exact effects for ten heads
# (`method="exact"` computes all). The command is
# `interp patch --pairs mine.jsonl --component z --out runs/mine`.
#
# **Next steps**
#
# - Paths, circuits, faithfulness, AtP\* and integrated gradients:
#   [docs/patching.md](../docs/patching.md).
# - The speed of exact sweeps: [docs/speed.md](../docs/speed.md).
# - [05 MoELoRA experts](05_moelora_experts.ipynb): the same kind of effects for experts.
