"""A summary of each command, for the overview and for the help of the command.

In a module of its own, so that ``interp --help`` does not import model code.
"""

COMMANDS = {
    "demo": "The whole way on the embedded model: prompts, heads, constraint, held-out scores, "
    "report.",
    "locate": "Find what every head does to the answers of false-premise questions.",
    "evaluate": "Constrain the heads of a run and score that on its held-out subjects and "
    "templates, or on questions of your own.",
    "report": "Write report.html from what is in a run directory.",
    "explore": "Open a local page to ask a run's model questions with and without its heads.",
    "premises": "List, show, build or check premises.",
    "probe": "Find where a model reads a false premise, beside controls, and train a detector of "
    "it.",
    "detect": "Find the questions that presuppose something false, and the words that are false.",
    "ask": "Answer questions without and with a run's constraint, and show what it changed.",
    "patch": "Patch every unit of a component on pairs of clean and corrupted texts.",
    "circuit": "Score the edges between heads, MLPs and the logits, and run circuits of them.",
    "card": "Write a page about each of some heads of a run: where it looks, what it writes.",
    "atlas": "Set run directories side by side: a page, a table with a row a run, a figure.",
    "export": "Write a directory to hand over: a run's constraint, its detector and a card, for "
    "plain transformers models.",
    "harness": "Run tasks of lm-evaluation-harness without and with the heads of a run.",
}
FAMILIES = {
    "moelora": "Train MoELoRA adapters, compare them with LoRA, analyze what their experts do."
}
"""Commands with subcommands."""
TOOLS = {"doctor": "Show versions, devices, free memory and cache, and what is missing."}
"""Commands without options and without a run."""
