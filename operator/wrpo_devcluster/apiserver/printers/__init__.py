"""Tables that kubectl prints."""
