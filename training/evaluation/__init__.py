"""How good samples are: FVD, CLIPSIM, measures of movement, and the protocols that fix them."""
