"""Choice of one member's answer for each item of a benchmark."""
