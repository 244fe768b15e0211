"""What every training shares: its command line, checkpoints, logs and the exact continuation of a run."""
