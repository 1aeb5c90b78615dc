"""`zoo top`: the zoo in a terminal, live. Needs the extra [top]; only `app.py` imports textual."""
