"""Tables and pictures of it."""
