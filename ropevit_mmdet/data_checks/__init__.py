"""What a data set must be before a run, and all that can be wrong with one."""
