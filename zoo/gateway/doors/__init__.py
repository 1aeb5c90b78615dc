"""One protocol of the gateway each. `zoo/gateway/app.py` lists them, and says how one is added."""
