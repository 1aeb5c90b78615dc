"""Pictures of results, drawn with Pillow."""
