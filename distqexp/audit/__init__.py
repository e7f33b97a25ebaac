"""Audits: statistical tests that may catch a mechanism that gives away more than it claims."""
