"""Images of one's own: folders, tar files and tables of images become a dataset as the download makes it."""
