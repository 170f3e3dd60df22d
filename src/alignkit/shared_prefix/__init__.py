"""Completions of one prompt without computing the prompt again: see `layout` for the idea."""

from .backbone import share_prefix
from .layout import PackedRows, RowCost, pack_rows
from .support import row_cost, why_not_shared

__all__ = ["PackedRows", "RowCost", "pack_rows", "row_cost", "share_prefix", "why_not_shared"]
