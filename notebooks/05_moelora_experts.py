# %% [markdown]
# # 05 · The experts of a MoELoRA adapter
#
# A MoELoRA adapter adds several small LoRA experts and a router to frozen projections. This
# notebook trains one on two kinds of task. Do the routers send the tasks to different experts, is
# the difference larger than chance, and do the experts affect the answers?
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
    steps=16,
    batch=4,
    learning_rate=3e-3,
    log_every=2,
    test_limit=4,
)
run = train_moelora(settings, Path("runs/moelora"))
losses = pd.read_csv(run / "losses.csv").assign(method="moelora", seed=settings.seed)
curve_figure(losses, "language_loss", "loss (nats per answer token)")

# %% [markdown]
# The load-balance loss keeps the routers from sending all tokens to one expert. It is 1 if all
# experts get the same number of tokens.

# %%
curve_figure(losses, "load_balance", "load-balance loss", even=1.0)

# %% [markdown]
# ## Which experts each task uses
#
# Held-out questions run once through the model. A hook at every adapted projection counts the
# experts that the routers choose for the tokens of each task.

# %%
base = load_pretrained("smollm2-135m")
adapted = interp.moelora.load_adapter(base.model, run / "adapter").eval()
tasks = {name: load_split(name).test[:20] for name in ("arithmetic", "facts")}
texts = {name: [f"{one.prompt} {one.response}" for one in some] for name, some in tasks.items()}
records, similarity = collect_routing(adapted, texts, base.tokenizer)
records.plot("load", target="q_proj")

# %% [markdown]
# Orange: the expert gets more than an equal share of a task's tokens; purple: less. Different maps
# for different tasks could be a sign of specialization. But tasks use different words, and every
# router separates words, even an untrained one. The next section tests for this.
#
# ## Is it more than chance?
#
# - Null `texts`: the task labels are permuted over whole texts.
# - Null `untrained`: randomly initialized routers read the same hidden states.
#
# Only specialization that exceeds the second null has been *learned*.

# %%
found = measure_specialization(records, token_draws=0)
found.plot("task_information")

# %%
found.summary()

# %% [markdown]
# ## Switch experts off
#
# Routing is a correlation. The causal test switches an expert off and measures the loss of the
# answers again. **Sign**: effect = loss without the expert − loss with it, in nats per answer
# token; *positive* means that the expert was useful. A gradient estimate ranks all experts, and the
# exact effect is computed for the first eight.

# %%
model = interp.moelora.hooked(adapted, base.tokenizer)
some = {name: examples[:8] for name, examples in tasks.items()}
effects = expert_effects(model, some, budget=8)
effects

# %% [markdown]
# `interp.experts.effects.agreement.routing_agreement(effects, found.experts)` compares the two:
# does the task that uses an expert most also suffer most without it?
#
# **Limitation.** After so few steps on a small model the effects are small: the experts are still
# alike, and switching one off changes little. The figures show how to do the analysis, not the
# results of a fully trained MoELoRA adapter.
#
# **Shortened for speed.** This notebook uses a few steps (200 or more are usual), 20 held-out
# questions per task, no null within words (omit `token_draws=0`), and eight experts. The full
# commands are `interp moelora train` and `interp moelora analyze`.
#
# **Next steps**
#
# - All measures and nulls: [docs/experts.md](../docs/experts.md).
# - Training, losses, and a comparison with LoRA: [docs/moelora.md](../docs/moelora.md).
# - The effect of experts on single heads: [docs/experts_heads.md](../docs/experts_heads.md).
# - [06 Probes and the gate](06_probes_and_gate.ipynb).
