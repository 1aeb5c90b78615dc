"""The state of the scheduler: plain records and small containers. They decide nothing."""
