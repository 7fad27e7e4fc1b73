"""Tests, in folders that mirror the house. Each compares with something independent of the code that it tests."""
