"""What `index.py` is made of: which videos there are, their windows decoded, encoded and written."""
