"""The paper's figures and tables from our own measurements and runs, with the literature's numbers beside them."""
