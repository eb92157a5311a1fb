"""Training examples: reading them from files and premises, and encoding them."""
