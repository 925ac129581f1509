"""Run folders: the only owner of their file names."""
