"""The engine: batches, recording a run, running part of it again, memory, and generation."""
