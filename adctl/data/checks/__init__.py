"""What is wrong with a data set before anything is learned from it: findings, each with what to do about it."""
