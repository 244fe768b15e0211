"""Checkpoint layouts: reading, recognition, official releases, Hugging Face, names and load reports."""
