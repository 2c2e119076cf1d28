"""Where rollouts and learning happen: in this process, or on Ray. Nothing else in the project imports ray."""
