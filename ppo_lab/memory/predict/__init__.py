"""What a run will hold, before it starts."""
