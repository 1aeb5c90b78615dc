"""`zoo doctor`: what of a machine and an installation keeps the zoo from working, and what to do about each."""
