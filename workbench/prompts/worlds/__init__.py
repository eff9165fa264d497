"""The generated worlds of prompts: Pocket's and Planted's."""
