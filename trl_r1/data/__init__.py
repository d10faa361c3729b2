"""Rows in, rows out: any data set becomes rows here (`trl_r1.data.sources`)."""

from __future__ import annotations
