"""ppo-lab: train robots with PPO, and know what it costs in memory."""

__version__ = "0.1.0"
