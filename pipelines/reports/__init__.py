"""What finished runs add up to: tables, plots and pages."""
