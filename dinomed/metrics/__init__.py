"""Metrics as plain functions of arrays, each with one stated policy for what is empty or undefined.

Everywhere: what is undefined is nan, is counted or named, and is left out of means; it never counts as 0. The modules
say what is undefined in their case.
"""
