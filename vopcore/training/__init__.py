"""From shards to tuned weights: batches, loss, gradients, optimiser and the loop over steps."""
