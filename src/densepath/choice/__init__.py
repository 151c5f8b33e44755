"""Whether anything beats the SFT model at its best: `measure` makes findings, `decide` decides from them alone."""
