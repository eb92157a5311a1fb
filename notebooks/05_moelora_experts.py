# %% [markdown]
# # 05 · The experts of a MoELoRA adapter
#
# A MoELoRA adapter puts several small LoRA experts and a router beside frozen projections. After
# training on two kinds of task: do the routers send them to different experts, is that more than
# chance, and do the experts matter?
#
# ## Train

# %%
from pathlib import Path

import pandas as pd

import interp
from interp.commands.train import train_moelora
from interp.experts import collect_routing, measure_specialization
from interp.experts.effects.effects import expert_effects
from interp.moelora.data.sources import load_split
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings
from interp.report.comparison_figures import curve_figure

settings = TrainingSettings(
    data=("arithmetic", "facts"),
    steps=24,
    batch=4,
    learning_rate=3e-3,
    log_every=2,
    test_limit=4,
)
run = train_moelora(settings, Path("runs/moelora"))
losses = pd.read_csv(run / "losses.csv").assign(method="moelora", seed=settings.seed)
curve_figure(losses, "language_loss", "loss (nats per answer token)")

# %% [markdown]
# The load-balance loss keeps the routers from sending everything to one expert. It is 1 where all
# experts get the same.

# %%
curve_figure(losses, "load_balance", "load-balance loss", even=1.0)

# %% [markdown]
# ## Who is used for what
#
# Held-out questions run once. A hook at every adapted projection counts which experts the routers
# choose for the tokens of each task.

# %%
base = load_pretrained("smollm2-135m")
adapted = interp.moelora.load_adapter(base.model, run / "adapter").eval()
tasks = {name: load_split(name).test[:30] for name in ("arithmetic", "facts")}
texts = {name: [f"{one.prompt} {one.response}" for one in some] for name, some in tasks.items()}
records, similarity = collect_routing(adapted, texts, base.tokenizer)
records.plot("load", target="q_proj")

# %% [markdown]
# Orange: the expert gets more than an even share of a task's tokens; purple: less. Maps that differ
# between tasks are what specialization would look like. But tasks use different words, and any
# router sorts words, even one that was never trained. So:
#
# ## Is it more than chance?
#
# - null `texts`: the tasks' names are dealt anew to whole texts;
# - null `untrained`: routers drawn as before training, reading the same states.
#
# Only what beats the second one has been *learned*.

# %%
found = measure_specialization(records, token_draws=0)
found.plot("task_information")

# %%
found.summary()

# %% [markdown]
# ## Switch experts off
#
# Use is a correlation. The cause is tested by switching an expert off and reading the answers'
# loss again. **Sign**: effect = loss without the expert − loss with it, in nats per answer token;
# *positive* means that the expert was of use. A gradient estimate ranks all experts, and the first
# eight are run.

# %%
model = interp.moelora.hooked(adapted, base.tokenizer)
some = {name: examples[:8] for name, examples in tasks.items()}
effects = expert_effects(model, some, budget=8)
effects

# %% [markdown]
# `interp.experts.effects.agreement.routing_agreement(effects, found.experts)` sets the two beside
# each other: does the task that uses an expert most suffer most without it?
#
# **A limit.** After so few steps on a small model there is little to find: experts are still alike,
# and switching one off changes little. What the figures show here is how to look, not what MoELoRA
# does.
#
# **What was cut for speed.** A few steps (200 and more are usual), 30 held-out questions a task, no
# null within words (leave out `token_draws=0`), eight experts. In full: `interp moelora train` and
# `interp moelora analyze`.
#
# **Where to go next**
#
# - All measures and nulls: [docs/experts.md](../docs/experts.md).
# - Training, losses, and LoRA beside it: [docs/moelora.md](../docs/moelora.md).
# - What experts do to single heads: [docs/experts_heads.md](../docs/experts_heads.md).
# - [06 Probes and the gate](06_probes_and_gate.ipynb).
