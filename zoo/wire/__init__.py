"""What crosses a socket or lies in shared memory: messages, bodies, arenas, lifelines. Both sides use it."""
