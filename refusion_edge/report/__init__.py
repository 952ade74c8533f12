"""What every report is made of: HTML pages, plots, confidence intervals."""
