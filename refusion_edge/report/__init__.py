"""Building blocks of reports: HTML pages, plots and confidence intervals."""
