"""A run as a folder that others can load: weights, settings, numbers and a card; and its way to a hub."""
