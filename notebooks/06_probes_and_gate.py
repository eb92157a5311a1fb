# %% [markdown]
# # 06 · Probes and the gate
#
# Where in the model can a false premise be read, is that more than what probes find anywhere, and
# can it decide when to constrain?

# %%
import interp
import probes

model = interp.load_model("smollm2-135m")
split = interp.filter_known(model, interp.load_premises("capitals", limit=60)).split(seed=0)
grid = probes.probe_grid(
    model,
    split.search,
    split.held_out,
    layers=[2, 6, 10, 14, 18, 22, 26],
    positions=["subject", "object", "last"],
)
grid

# %% [markdown]
# One cell is one linear probe, fitted on the search part and scored on other cities and other
# wordings. AUC 0.5 is chance, 1 tells every false premise from its true twin. At the subject, which
# stands before the false word, there is nothing to be read: a control.
#
# ## Does the probe read the premise?
#
# A probe with hundreds of weights finds something in anything. It has to beat shuffled labels, the
# object's name alone, the first block, and the same model with random weights.

# %%
probes.compare_with_controls(model, split.search, split.held_out, layer=int(grid.best["layer"]))

# %% [markdown]
# ## A detector
#
# Two probes make a detector: one says whether a raw question has a false premise, the other which
# words it is. Its threshold allows few false alarms: a gate should rather miss a false premise than
# spoil a right answer.

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
# With the words given (`gate="oracle"`) the constraint acts on every question, on honest ones too.
# With `gate="probe"` it acts where the detector fires, and elsewhere the answer is the
# unconstrained one to the last bit. Compare P(true) on the twins in the two tables.

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
# Nobody says any more which words are false:

# %%
interp.generate(model, questions[0], heads=heads, gate="probe", detector=detector)

# %%
interp.generate(model, questions[1], heads=heads, gate="probe", detector=detector)

# %% [markdown]
# **A limit.** This detector knows one relation, and only facts that the model knows. On other kinds
# of premise it misses most; [docs/probes.md](../docs/probes.md) says by how much.
#
# **What was cut for speed.** The first 60 capitals, seven layers, one relation.
# `probes.detector_for(model)` trains on all shipped relations once and keeps the detector;
# `interp probe --premises capitals --out runs/probe` makes the whole map.
#
# **Where to go next**
#
# - The gate beside a system prompt and steering: [docs/gate.md](../docs/gate.md).
# - Does the model use what the probe reads? `probes.causal.remove_direction`.
# - Interventions as values, on heads and experts:
#   [docs/interventions.md](../docs/interventions.md).
