"""A benchmark's cells side by side on Ray, its rounds on disk, and what a round changed against the last."""
