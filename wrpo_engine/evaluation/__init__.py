"""Evaluation: the trained model and the target respond to held-out prompts, and the reward model compares them."""
