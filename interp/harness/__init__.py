"""lm-evaluation-harness with a constraint: the model type ``faithlens``, and tasks that ship.

lm-evaluation-harness is the optional extra ``harness``. Only `interp.harness.model` and what runs
tasks imports it.
"""
