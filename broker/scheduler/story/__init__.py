"""What was decided, and what there is, for those that ask: in words and as data. Changes nothing."""
