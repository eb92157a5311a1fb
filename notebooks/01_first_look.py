# %% [markdown]
# # 01 · A first look
#
# Asked *"What is Tokyo, the capital of Ethiopia, famous for?"*, a language model often goes along,
# although it knows where Tokyo is. Which attention heads make it do so, and what happens when they
# may no longer read the false word? Five lines give the first answer. The embedded model
# (SmolLM2-135M-Instruct) is downloaded once, 93 MB.

# %%
import interp

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=60)).split(seed=0)
effects = interp.locate_heads(model, split.search, site="attention")
effects

# %% [markdown]
# One cell is one head. Its effect is how much the answer's preference for the true country, in
# logits, rises when the head may no longer attend to the false one.
#
# - **Positive (orange)**: the answer gets better without the head. It carries the false premise.
# - **Negative (purple)**: the head helps the true answer.
# - Faded cells are not significant at a false-discovery rate of 5 %.
#
# Only capitals that the model demonstrably knows were asked about, and only the *search* half of
# them. The *held-out* half, with other cities and other wordings, is for the test below.
#
# ## The strongest heads, and what the first of them looks at

# %%
heads = effects.select(count=3)  # about 1 % of the heads
heads

# %%
question = "What is Tokyo, the capital of Ethiopia, famous for?"
strongest = effects.select(count=1)
interp.attention_pattern(model, question, strongest, false_object="Ethiopia")

# %% [markdown]
# A row is a token that reads, a column one that is read; the false object is marked. Look at the
# last row, where the answer begins. Give `heads` for the others: not every one of them looks there
# in every question.
#
# ## The same question, without and with these heads

# %%
interp.generate(model, question)

# %%
interp.generate(model, question, heads=heads, false_object="Ethiopia")

# %% [markdown]
# One question proves nothing. On all held-out questions: how often does the model prefer the true
# country, and what do honest questions (the *twins*, with the true country in them) pay for it?

# %%
interp.evaluate(model, split.held_out, heads=heads, random_sets=0, answers=False)

# %% [markdown]
# **A limit.** The answers are those of a very small model: preferring the right country does not
# make a sentence good, and some constrained answers ramble. The preference is scored, not style.
#
# **What was cut for speed.** The first 60 capitals (leave out `limit=`), effects by their
# first-order estimate (`method="path"` is the paper's exact method), no random sets to compare with
# (leave out `random_sets=0`), no written answers (leave out `answers=False`).
#
# **Where to go next**
#
# - [02 False-premise heads](02_false_premise_heads.ipynb): are these heads significant, and is the
#   estimate right?
# - [03 Constraining and its cost](03_constraining_and_cost.ipynb): how many heads, at what cost?
# - [04 Patching your own task](04_patching_your_task.ipynb): the engine without any premises.
