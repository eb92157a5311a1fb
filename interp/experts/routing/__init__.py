"""What experts are used for: counts of tokens, tasks and token classes, with their nulls."""
