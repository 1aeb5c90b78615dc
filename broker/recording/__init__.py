"""The broker's recording of its own requests."""
