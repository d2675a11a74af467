"""What makes an object valid, by kind."""
