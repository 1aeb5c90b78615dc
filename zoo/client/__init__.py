"""The clients: what a program imports to use the zoo. Light: no model library, no broker."""
