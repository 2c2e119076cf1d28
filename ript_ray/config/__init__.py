"""What is learned, as values."""
