"""What every env on the Genesis simulator shares."""
