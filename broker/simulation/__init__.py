"""The scheduler in virtual time: what it would do, in seconds instead of days."""
