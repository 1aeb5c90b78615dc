"""`make demo`: the zoo at work, in under two minutes after the install; see `__main__.py`."""
