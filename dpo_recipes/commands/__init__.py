"""One verb of the command line in each file: the public function of the same name."""
