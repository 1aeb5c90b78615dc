"""Memory as measured: of devices, of processes, of the host, and what was learnt of it in earlier lives."""
