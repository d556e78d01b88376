"""The command line: Ray moves the work, MLflow keeps the numbers; no mathematics here."""
