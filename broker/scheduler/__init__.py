"""The scheduler: a pure state machine. No sockets, clocks, processes, logging or threads."""
