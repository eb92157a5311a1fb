"""Training adapters, scoring their answers, and comparing them."""
