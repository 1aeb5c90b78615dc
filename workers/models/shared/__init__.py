"""What several adapter families use."""
