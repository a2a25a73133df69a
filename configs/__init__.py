"""One file per recipe; common.py holds what they share."""
