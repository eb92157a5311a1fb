"""Inspect prompts and answers: attention, saliency, information flow, and uncertainty."""
