"""Checkpoint layouts: official releases, Hugging Face, names and load reports."""
