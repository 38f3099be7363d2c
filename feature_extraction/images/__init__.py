"""From image files, archives and tables to the pixels that networks see."""
