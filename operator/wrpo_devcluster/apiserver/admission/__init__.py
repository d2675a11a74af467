"""Admission control: changes and refusals of authorized writes."""
