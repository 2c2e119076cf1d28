"""Training data: contexts and demonstrations."""
