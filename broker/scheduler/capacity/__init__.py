"""Room on devices: what is charged, which workers may go, which model is placed where. Pure."""
