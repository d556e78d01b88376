"""Reference runs: a card of what somebody measured, and whether a run here agrees with it."""
