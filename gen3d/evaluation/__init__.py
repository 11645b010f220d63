"""Measurements that print the tables of configs/README.md."""
