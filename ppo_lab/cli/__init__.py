"""The commands: the only user of Hydra and of the command line."""
