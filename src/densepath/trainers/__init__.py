"""Trainers: SFT that keeps reference checkpoints, and DPR. They hold state and devices; formulas live in core."""
