"""What a run holds in memory. Knows nothing of envs or learners."""
