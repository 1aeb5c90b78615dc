"""The page at `/`: what the zoo does, live, for browsers. Its text, style and scripts are the files in `static/`."""
