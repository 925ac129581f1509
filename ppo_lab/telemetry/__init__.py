"""What a run tells: its folder's papers, its metrics, its console. Knows numbers, not learners."""
