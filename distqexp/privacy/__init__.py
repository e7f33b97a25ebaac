"""Privacy accounting: Gaussian and zero-concentrated curves, calibration, releases as events, the ledger."""
