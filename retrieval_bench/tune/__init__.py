"""Fair search: every strategy's options are chosen on validation classes, with the same number of trials and the same compute."""
