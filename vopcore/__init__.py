"""Text-video retrieval on a frozen CLIP: frames, tuning methods, measurement; no cluster, no tracker."""
