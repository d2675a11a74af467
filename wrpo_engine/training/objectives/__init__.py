"""Losses, rewards and statistics of the training objectives."""
