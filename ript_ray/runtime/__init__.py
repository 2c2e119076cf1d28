"""Serial and Ray execution of rollouts and learning. The only package that imports ray."""
