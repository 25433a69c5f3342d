"""From a path to tokenised, counted pairs."""
