"""Privacy accounting: Gaussian, zero-concentrated and pure guarantees, calibration, releases as events, the ledger."""
