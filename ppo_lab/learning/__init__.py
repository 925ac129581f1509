"""The learner: rsl_rl's PPO, run by a loop of our own. Knows no simulator and no file layout."""
