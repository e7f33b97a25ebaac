"""Audits: statistical tests that would catch a mechanism that gives away more than it claims."""
