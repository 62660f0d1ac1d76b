"""One function per figure, from records or rows of the leaderboard to a plot."""
