"""The command line, `zoo`."""
