"""What changes when a head is masked: the mask, the engines, and the stored run."""
