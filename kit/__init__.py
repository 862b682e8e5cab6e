"""What the lecture (utils.py) stands on and no chapter talks about."""
