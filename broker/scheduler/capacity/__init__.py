"""Room on devices: what is charged, who may go, who comes where. Pure."""
