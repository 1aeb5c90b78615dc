"""The parts of the scheduler: what each event does, and the rules that settle it. They share one `Registry`."""
