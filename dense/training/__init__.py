"""What every training shares: its command line, checkpoints, progress and precision."""
