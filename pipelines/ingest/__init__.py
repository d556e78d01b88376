"""Videos to shards on Ray Data: the driver, one task, its progress."""
