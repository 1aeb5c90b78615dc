"""`make demo`: the zoo at work, in under two minutes after the install. `__main__.py` is the programme."""
