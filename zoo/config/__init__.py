"""config.toml: its schema, how it is read, and what changed between two of them."""
