"""What `serve.py` is made of: the indexes it answers from, the API over them, and the page."""
