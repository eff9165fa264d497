"""Finding: which heads come first, from less work than scoring all of them, or as sets that act together."""
