"""Programs that others start in a process of their own, and never import."""
