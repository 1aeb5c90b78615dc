"""Measurements. Every figure is a ratio to a floor that was measured in the same run: the hosts are noisy."""
