"""Text-video retrieval on a frozen CLIP: frames, tuning methods, measurement. Knows no cluster and no tracker."""
