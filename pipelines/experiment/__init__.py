"""One experiment: what is checked and prepared before, its runs, where its numbers came from."""
