"""The learner: rsl_rl's PPO in a loop of our own. Knows no simulator; only this package imports rsl_rl."""
