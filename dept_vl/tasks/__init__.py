"""One module for each family of tasks: data, and the functions of a Task."""
