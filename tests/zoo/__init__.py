"""A tiny model of every architecture that transformers generates text with."""
