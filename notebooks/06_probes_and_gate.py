# %% [markdown]
# # 06 · Probes and the gate
#
# Where in the model can a probe read a false premise, does it find more than its controls do, and
# can it decide when to constrain?

# %%
import interp
import probes

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=32)).split(seed=0)
grid = probes.probe_grid(
    model,
    split.search,
    split.held_out,
    layers=[2, 6, 10, 14, 18, 22, 26],
    positions=["subject", "object", "last"],
)
grid

# %% [markdown]
# Each cell is one linear probe, fitted on the search part and scored on other cities and other
# templates. An AUC of 0.5 is chance; an AUC of 1 separates every false premise from its true twin.
# The subject comes before the false word, so a probe there cannot read the premise: it is a
# control.
#
# ## Does the probe read the premise?
#
# A probe with hundreds of weights finds a pattern in any data. It has to beat shuffled labels, the
# embedding of the object alone, the first block, and the same model with random weights.

# %%
probes.compare_with_controls(model, split.search, split.held_out, layer=int(grid.best["layer"]))

# %% [markdown]
# ## A detector
#
# A detector combines three probes: one predicts whether a raw question has a false premise, the
# others find the two things that it joins, and which of them is false. Its threshold allows few
# false alarms: for a gate it is better to miss a false premise than to spoil a right answer.

# %%
detector = probes.train_detector(model, [split.search], known=False)
probes.score_detector(model, split.held_out, detector)

# %%
questions = [
    "What is Tokyo, the capital of Ethiopia, famous for?",
    "What is Tokyo, the capital of Japan, famous for?",
    "How tall is the Eiffel Tower?",
]
detector.detect(model, questions)

# %% [markdown]
# ## The gate
#
# With `gate="oracle"` the constraint is given the words and acts on every question, including
# honest ones. With `gate="probe"` it acts only where the detector fires; elsewhere the answer
# equals the unconstrained answer to the last bit. Compare P(true) on the twins in the two tables.

# %%
effects = interp.locate_heads(model, split.search, site="attention")
heads = effects.select(count=3)
interp.evaluate(model, split.held_out, heads=heads, random_sets=0, answers=False)

# %%
interp.evaluate(
    model,
    split.held_out,
    heads=heads,
    gate="probe",
    detector=detector,
    random_sets=0,
    answers=False,
)

# %% [markdown]
# `generate` no longer needs the false words:

# %%
interp.generate(model, questions[0], heads=heads, gate="probe", detector=detector)

# %%
interp.generate(model, questions[1], heads=heads, gate="probe", detector=detector)

# %% [markdown]
# **Limitation.** This detector knows one relation, and only facts that the model knows. It misses
# most other kinds of false premise; [docs/probes.md](../docs/probes.md) has the numbers.
#
# **Shortened for speed.** This notebook uses the first 32 capitals, seven layers and one relation.
# `probes.detector_for(model)` gives the one that ships for this model; for any other it trains one
# on the relations that ship, once.
# `interp probe --premises capitals --out runs/probe` computes the whole map.
#
# **Next steps**
#
# - The gate compared with a system prompt and steering: [docs/gate.md](../docs/gate.md).
# - Does the model use the direction that the probe reads? See `probes.causal.remove_direction`.
# - Interventions as values, on heads and experts:
#   [docs/interventions.md](../docs/interventions.md).
