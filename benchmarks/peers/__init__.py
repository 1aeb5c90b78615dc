"""The zoo side by side with what people use for the same: the same work, in the same run, in turns.

`make bench-peers` sets up what is missing and runs it; `docs/peers.md` says what was found. A peer is one file here
(`peer.py` says what it has), and its libraries are one list of pinned versions beside it (`NAME.txt`), installed into a
virtual environment of its own (`.peers/NAME`).
"""
