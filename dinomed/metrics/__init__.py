"""Metrics as plain functions of arrays, each with one stated policy for empty inputs and undefined values.

An undefined value is nan in all of them. It is counted or named, and left out of means; it never counts as 0. Each
module says which values are undefined.
"""
