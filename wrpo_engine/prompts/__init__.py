"""Preparation of prompts: reading, cleaning and splitting them into SFT, preference and held-out prompts."""
