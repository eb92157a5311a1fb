"""Edges: how much of an effect goes from one node of a model straight to another."""
