"""Other methods that act on a false premise, scored as a constraint is."""
