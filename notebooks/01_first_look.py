# %% [markdown]
# # 01 · A first look
#
# Asked *"What is Tokyo, the capital of Ethiopia, famous for?"*, a language model often accepts the
# false premise, although it knows that Tokyo is in Japan. Which attention heads cause this, and how
# does the answer change if they cannot read the false word? Five lines of code give a first result.
# The embedded model (SmolLM2-135M-Instruct) is downloaded once, 93 MB.

# %%
import interp

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=40)).split(seed=0)
effects = interp.locate_heads(model, split.search, site="attention")
effects

# %% [markdown]
# Each cell is one head. Its effect is the increase of the logit difference between the true and the
# false country when the head cannot attend to the false country.
#
# - **Positive (orange)**: the answer gets better without the head. The head carries the false
#   premise.
# - **Negative (purple)**: the head helps the true answer.
# - Faded cells are not significant at a false-discovery rate of 5 %.
#
# The questions use only capitals that the model knows, and only the *search* half of them. The
# *held-out* half has other cities and other templates, and is used for the test below.
#
# ## The strongest heads, and the attention of the first one

# %%
heads = effects.select(count=3)  # about 1 % of the heads
heads

# %%
question = "What is Tokyo, the capital of Ethiopia, famous for?"
strongest = effects.select(count=1)
interp.attention_pattern(model, question, strongest, false_object="Ethiopia")

# %% [markdown]
# Rows are query tokens and columns are key tokens; the false object is marked. Look at the last
# row, where the answer begins. Pass `heads` to see the other heads: not every head attends to the
# false object in every question.
#
# ## The same question, without and with these heads

# %%
interp.generate(model, question)

# %%
interp.generate(model, question, heads=heads, false_object="Ethiopia")

# %% [markdown]
# One question proves nothing. The evaluation uses all held-out questions. It measures how often the
# model prefers the true country, and how much the constraint harms honest questions (the *twins*,
# which name the true country).

# %%
interp.evaluate(model, split.held_out, heads=heads, random_sets=0, answers=False)

# %% [markdown]
# **Limitation.** These are answers of a very small model: a model that prefers the right country
# does not always write a good sentence, and some constrained answers ramble. The evaluation scores
# the preference, not the style.
#
# **Shortened for speed.** This notebook uses the first 40 capitals (omit `limit=` for all),
# first-order estimates of effects (`method="path"` is the paper's exact method), no comparison with
# random sets of heads (omit `random_sets=0`), and no generated answers (omit `answers=False`).
#
# **Next steps**
#
# - [02 False-premise heads](02_false_premise_heads.ipynb): are these heads significant, and is the
#   estimate right?
# - [03 Constraining and its cost](03_constraining_and_cost.ipynb): how many heads, at what cost?
# - [04 Patching your own task](04_patching_your_task.ipynb): the patching engine without false
#   premises.
