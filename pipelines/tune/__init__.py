"""Tuning on Ray Train: the driver, one worker, the measurement."""
