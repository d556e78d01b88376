"""What every command shares: exit codes, argument parsing, progress bars."""
