"""Edges into and out of the experts of an adapter."""
