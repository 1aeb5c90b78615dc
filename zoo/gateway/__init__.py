"""What other programs speak (HTTP, ZeroMQ of recorders), as a process of its own and a client like any other."""
