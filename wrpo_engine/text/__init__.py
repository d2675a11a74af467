"""Chat templates and text: rendering, turns and plain text."""
