"""The methods beside DePT that change or train layers of the backbone, a file for each kind."""
