"""The one process that decides. Imports `zoo`, never `workers`, and nothing that touches pixels."""
