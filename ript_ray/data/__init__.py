"""What policies learn from: contexts and demonstrations."""
