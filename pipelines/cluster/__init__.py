"""Machines: what a run needs of them, starting Ray, and the network between workers."""
